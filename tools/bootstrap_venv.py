"""Creates a virtual environment with pip where Python lacks `ensurepip`, as Debian's python3 does.

    python3.11 tools/bootstrap_venv.py .venv

It needs only the standard library: it downloads the newest wheel of pip from the package index
(PIP_INDEX_URL, or PyPI) and installs it by running pip from the wheel itself.
"""

import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import venv


def newest_pip_wheel(index: str) -> str:
    """URL of the last wheel of pip that a PEP 503 index lists."""
    page_url = index.rstrip("/") + "/pip/"
    page = urllib.request.urlopen(page_url).read().decode()
    wheels = re.findall(r'href="([^"]+-py3-none-any\.whl[^"]*)"', page)
    if not wheels:
        sys.exit(f"{page_url} lists no wheel of pip; set PIP_INDEX_URL or install python3-venv.")
    return urllib.parse.urljoin(page_url, wheels[-1])


def main(folder: str) -> None:
    if os.path.isdir(folder) and os.listdir(folder) and not os.path.isfile(f"{folder}/pyvenv.cfg"):
        sys.exit(f"{folder} holds other files; name a new folder.")
    venv.create(folder, with_pip=False, clear=True)
    url = newest_pip_wheel(os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple"))
    with tempfile.TemporaryDirectory() as temporary:
        wheel = os.path.join(temporary, os.path.basename(urllib.parse.urlparse(url).path))
        urllib.request.urlretrieve(url, wheel)
        command = [f"{folder}/bin/python", f"{wheel}/pip", "install", "-q", wheel]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
