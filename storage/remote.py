"""From a URL to the folder it names; boto3 and huggingface_hub are imported only when one of theirs is asked for."""

from pathlib import Path

from storage.errors import SourceError
from storage.folders import DirectoryFolder, Folder


def open_folder(url: str, s3_endpoint_url: str | None = None) -> Folder:
    """Return the folder at ``url``: ``s3://…``, ``hf://…``, ``file://…`` or a path; nothing is reached yet.

    Raises:
        SourceError: nobody here speaks its scheme, or it is malformed.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return DirectoryFolder(Path(url).expanduser().resolve())
    if scheme == "file":
        return DirectoryFolder(Path(rest))
    if scheme == "s3":
        from storage.s3 import S3Folder  # noqa: PLC0415 - boto3 takes half a second, and GPU tests lack it

        return S3Folder(url, s3_endpoint_url)
    if scheme == "hf":
        from storage.hub import HubFolder  # noqa: PLC0415 - as above

        return HubFolder(url)
    raise SourceError(url, f"'{scheme}://' is not understood; s3://, hf:// and paths are")
