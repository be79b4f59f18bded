"""`make serve-s3`: a configuration with its models in S3, on a server of this process's own, which ends with it.

Usage: python demo_s3.py [serve_config.yaml]
"""

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from s3_server import S3Server, serve_s3

from app.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".flashserve" / "serve_s3.yaml"
DISK_DIR = ".flashserve/snapshots-s3"
# The server doesn't check them, but boto3 wants some.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


def run() -> None:
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "serve_config.yaml"
    document = yaml.safe_load(given.read_text())
    arguments = document["applications"][0]["args"]
    with serve_s3() as server:
        for model in arguments["models"]:
            upload(server, model)
        arguments["storage"] = {"disk_dir": DISK_DIR, "s3": {"endpoint_url": server.url}}
        CONFIG.write_text(yaml.safe_dump(document))
        os.environ |= CREDENTIALS
        print(example(server, arguments["models"][0]["id"]), flush=True)
        sys.argv = ["flashserve", "serve", str(CONFIG)]
        main()


def upload(server: S3Server, model: dict[str, Any]) -> None:
    directory = Path(model["source"])
    for path in (path for path in directory.rglob("*") if path.is_file()):
        server.objects[f"demo/{model['id']}/{path.relative_to(directory).as_posix()}"] = path.read_bytes()
    model["source"] = f"s3://demo/{model['id']}"


def example(server: S3Server, model_id: str) -> str:
    flashserve = Path(sys.executable).with_name("flashserve")
    export = " ".join(f"{name}={value}" for name, value in CREDENTIALS.items())
    return f"""An S3 server answers on {server.url} until this ends; the models are in s3://demo.

Once FlashServe answers, in another terminal: publish what it made of a model, and fetch it as another machine would.

  export {export}
  {flashserve} snapshot publish {model_id} s3://demo/published \\
    --dir {DISK_DIR} --s3-endpoint-url {server.url}
  {flashserve} snapshot fetch s3://demo/published --dir .flashserve/snapshots-fetched --s3-endpoint-url {server.url}
"""


if __name__ == "__main__":
    run()
