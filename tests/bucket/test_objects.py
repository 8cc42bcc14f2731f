"""Parts and versions of objects on gs://, which google-cloud-storage reads."""

import base64

import google_crc32c
import pytest

from speechgpt_jax import files
from tests.bucket import stand_in


@pytest.fixture(scope="module")
def bucket():
    files._bucket.cache_clear()
    with stand_in.served() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        yield bucket
    files._bucket.cache_clear()


def test_a_part_of_an_object(bucket):
    bucket.put("a.txt", b"0123456789")
    assert files.read_part("gs://bucket/a.txt", 2, 5) == b"234"
    assert files.read_part("gs://bucket/a.txt", 8, 50) == b"89"


def test_the_version_of_an_object_is_its_size_generation_and_check_sum(bucket):
    versions = []
    for data in (b"good", b"evil", b"good"):
        bucket.put("a.txt", data)
        versions.append(files.version("gs://bucket/a.txt"))
        checksum = google_crc32c.value(data).to_bytes(4, "big")
        assert versions[-1][::2] == [4, base64.b64encode(checksum).decode()]
    assert len({generation for _, generation, _ in versions}) == 3


def test_the_version_of_a_local_file_is_its_size_and_time(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"good")
    assert files.version(file) == [4, file.stat().st_mtime_ns]
