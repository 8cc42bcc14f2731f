"""gs:// without a bucket: in this process its paths are those of a local folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from etils.epath import gpath, testing

NAMES = ("copy", "exists", "glob", "isdir", "listdir", "makedirs", "mkdir", "open", "remove")
NAMES += ("rename", "replace", "rmtree", "stat")


@contextlib.contextmanager
def below(folder: Path) -> Iterator[None]:
    """gs://bucket/a is `folder`/bucket/a until the block ends."""

    def forward(original, *arguments, **kwargs):
        local = (str(x).replace("gs:/", str(folder)) for x in arguments)
        return original(*local, **kwargs)

    def walk(original, top, **kwargs):
        for parent, *children in forward(original, top, **kwargs):
            yield str(parent).replace(str(folder), "gs:/"), *children

    with (
        mock.patch.object(gpath, "_is_tf_installed", lambda: False),
        testing.mock_epath(**dict.fromkeys(NAMES, forward), walk=walk),
    ):
        yield
