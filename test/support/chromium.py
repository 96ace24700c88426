"""A page in a headless browser."""

import re
import subprocess


def open_in_chromium(page, folder, script=None):
    """(DOM after the script, console messages). The page's policy allows no script of a test."""
    if script is not None:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page)
        page = page.replace("</body>", f"<script>{script}</script></body>")
    path = folder / "page.html"
    path.write_text(page)
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync "
    flags += "disable-background-networking disable-component-update dump-dom "
    flags += f"enable-logging=stderr virtual-time-budget=2000 user-data-dir={folder / 'profile'}"
    command = ["chromium", *(f"--{flag}" for flag in flags.split()), path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
