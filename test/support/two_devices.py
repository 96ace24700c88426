"""Two devices that are not there: real numbers on the CPU, which must not meet across devices.

A tensor of ``FIRST`` or ``SECOND`` holds its values in one of the CPU. Whatever is computed with
it is computed there, and belongs to the same device; an operation on tensors of both, or of one and
the CPU, is an error, as on GPUs. So what a model gives that is spread over the two can be compared
with what it gives on one, and a tensor beside the wrong layer is found.
"""

from contextlib import contextmanager

import torch
from accelerate import dispatch_model
from torch.utils._python_dispatch import TorchDispatchMode

from self_ensemble.models.device_map import make_device_map

# Devices of this type exist everywhere and compute nothing, so that none of torch's own kernels
# can run in the place of what is simulated.
KIND = "meta"
FIRST, SECOND = torch.device(KIND, 0), torch.device(KIND, 1)
CPU = torch.device("cpu")
COPY, MOVE, INDEX = (
    torch.ops.aten.copy_.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.index.Tensor,
)


class Simulated(torch.Tensor):
    """A tensor of a device that is not there. held: its values."""

    @staticmethod
    def __new__(cls, held, device):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=device
        )

    def __init__(self, held, device):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    def tolist(self):
        return self.held.tolist()


def held(value):
    return value.held if isinstance(value, Simulated) else value


def mapped(function, value):
    """Of all that operations are given and give: torch's own trees take most of the time here."""
    if isinstance(value, list | tuple):
        return type(value)([mapped(function, each) for each in value])
    return function(value)


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)


def compute(function, args, kwargs):
    """An operation, on the device that its tensors are on, or that it asks for."""
    tensors = list(tensors_in((*args, *kwargs.values())))
    devices = {tensor.device for tensor in tensors if isinstance(tensor, Simulated)}
    on_cpu = [t for t in tensors if not isinstance(t, Simulated) and t.dim() > 0]
    if function not in (COPY, MOVE) and (
        len(devices) > 1 or (devices and on_cpu and function is not INDEX)
    ):
        raise RuntimeError(f"{function} of tensors on {[str(t.device) for t in tensors]}")
    asked = kwargs.get("device")
    if asked is not None:
        device, kwargs = torch.device(asked), kwargs | {"device": CPU}
    elif function is COPY:
        device = args[0].device
    else:
        device = next(iter(devices), CPU)
    settings = {name: mapped(held, value) for name, value in kwargs.items()}
    found = function(*mapped(held, args), **settings)
    if args and isinstance(args[0], Simulated) and found is args[0].held:  # in place
        return args[0]
    if device.type != KIND:
        return found
    return mapped(lambda x: Simulated(x, device) if isinstance(x, torch.Tensor) else x, found)


class _Simulating(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.not_composed = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function not in self.not_composed:
            with self:
                found = function.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
            self.not_composed.add(function)
        return compute(function, args, kwargs or {})


@contextmanager
def two_devices():
    """Within, tensors may be on `FIRST` and `SECOND`."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor: made on the CPU, then moved
    try:
        with torch.inference_mode(), _Simulating():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def spread_model(model, gpus):
    """The model with layer i on device gpus[i], as transformers loads it by such a device map."""
    device_map = {
        name: torch.device(KIND, index) for name, index in make_device_map(model, gpus).items()
    }

    def device_of(name):
        return next(at for at in (name, *_parents(name)) if at in device_map)

    made = {}  # tied weights stay tied
    for module_name, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                device = device_map[device_of(f"{module_name}.{name}".removeprefix("."))]
                if id(tensor) not in made:
                    there = Simulated(tensor.detach(), device)
                    if own is module._parameters:
                        there = torch.nn.Parameter(there, requires_grad=False)
                    made[id(tensor)] = tensor, there
                own[name] = made[id(tensor)][1]
    dispatch_model(model, device_map, main_device=FIRST)
    return model


def _parents(name):
    while name := name.rpartition(".")[0]:
        yield name
