"""The application's password in moto's Secrets Manager, with the steps of a rotation."""

import json
import logging
from typing import Any, Self

import boto3
from moto.server import ThreadedMotoServer

REGION = "eu-central-1"


class SecretStore:
    """A moto server that stores a role's password. `environment` points a handler at it."""

    def __init__(self, name: str, role: str, password: str) -> None:
        self._name, self._role = name, role
        self.password = password
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)

    def __enter__(self) -> Self:
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }
        self._client = boto3.client(
            "secretsmanager",
            region_name=REGION,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        secret = self._client.create_secret(
            Name=self._name, SecretString=self._secret_string(self.password)
        )
        self._current = secret["VersionId"]
        self.environment |= {"DB_AUTH": "secret", "DB_SECRET_ARN": secret["ARN"]}
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.stop()

    def propose(self, password: str) -> None:
        """Store a new password as AWSPENDING, the first step of a rotation."""
        version: Any = self._client.put_secret_value(
            SecretId=self._name,
            SecretString=self._secret_string(password),
            VersionStages=["AWSPENDING"],
        )
        self._proposed = version["VersionId"]

    def promote(self) -> None:
        """Make the pending password AWSCURRENT, the last step."""
        self._client.update_secret_version_stage(
            SecretId=self._name,
            VersionStage="AWSCURRENT",
            MoveToVersionId=self._proposed,
            RemoveFromVersionId=self._current,
        )
        self._current = self._proposed

    def _secret_string(self, password: str) -> str:
        return json.dumps({"username": self._role, "password": password})
