"""What --model may name, and names that users add."""

import pytest
from writing import error_of

import constants
from self_ensemble.models.aliases import ALIASES, MODEL_PATHs, register_alias, resolve_model
from self_ensemble.system.errors import UserError


def test_resolve_model(tmp_path):
    for alias, target in MODEL_PATHs.items():
        assert resolve_model(alias) == target
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("org/some-model_1.5B") == "org/some-model_1.5B"


@pytest.mark.parametrize(
    "name", ["llama3.2_9b", "gpt2", "a/b/c", "../no/where", "./no", "", "a b/c"]
)
def test_resolve_model_lists_the_aliases(name):
    with pytest.raises(UserError) as caught:
        resolve_model(name)
    sentence = str(caught.value)
    assert repr(name) in sentence and all(alias in sentence for alias in MODEL_PATHs)


def test_resolve_model_wants_the_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    assert "folder" in error_of(resolve_model, str(file))


@pytest.fixture
def mine():
    register_alias("mine", "my-organisation/my-model")
    yield "mine"
    ALIASES.remove("mine")


def test_an_alias_of_the_users_own_is_one_like_the_others(mine):
    assert resolve_model(mine) == MODEL_PATHs[mine] == "my-organisation/my-model"
    assert constants.MODEL_PATHs is MODEL_PATHs and list(MODEL_PATHs)[-1] == mine
    with pytest.raises(UserError, match=r", mine$"):
        resolve_model("your")


def test_names_that_cannot_be_aliases(mine):
    for name, target in ((mine, "other/model"), ("demo", "x/y"), ("my/model", "x/y"), ("", "x/y")):
        with pytest.raises(ValueError):
            register_alias(name, target)
    assert "none" not in MODEL_PATHs and len(MODEL_PATHs) == len(set(MODEL_PATHs))
    with pytest.raises(KeyError):
        MODEL_PATHs["none"]
