"""The S3 server of the tests gives what S3 gives to who reads as others do."""

from pathlib import Path

import boto3
import pytest

from tests.support.s3_server import serve_s3

# Above boto3's threshold for reading in parts, the last of which it asks for without an end.
SIZE_BYTES = 20 << 20


def test_boto3_reads_in_parts_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "any")
    content = bytes(range(256)) * (SIZE_BYTES // 256)
    with serve_s3() as s3:
        s3.objects["bucket/file"] = content
        boto3.client("s3", endpoint_url=s3.url).download_file("bucket", "file", str(tmp_path / "file"))
        assert s3.requests["GET"] > 1
    assert (tmp_path / "file").read_bytes() == content
