"""Create and update Prefect artifacts without their content entering Prefect's events.

Prefect's server writes an event with an artifact's whole content when one with a key is created and when the newest of
a key is deleted, and its client writes one for each update. Events outlive what they are about, and no interface
deletes them. So an artifact is created empty, and filled by a request that no event follows.
"""

from http import HTTPStatus
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.context import get_task_and_flow_run_ids

Kind = Literal["markdown", "progress", "table"]
EMPTY: dict[Kind, Any] = {"markdown": "", "progress": 0.0, "table": "[]"}


def create_artifact(kind: Kind, data: Any, *, key: str, description: str) -> UUID:
    """Return the id of a new artifact of the flow or task run that calls this.

    Args:
        kind: How the UI shows it.
        data: Text for Markdown, a share in percent for progress, JSON text of rows for a table.
        key: What artifacts of one kind about one subject share; events keep it, and a pseudonym in it.
        description: What it is, for people.
    """
    task_run, flow_run = get_task_and_flow_run_ids()
    empty = ArtifactCreate(key=key, type=kind, data=EMPTY[kind], task_run_id=task_run, flow_run_id=flow_run)
    with get_client(sync_client=True) as client:
        created = client.create_artifact(empty).id
        assert created is not None
        replace(client, created, data=data, description=description)
    return created


def update_artifact(artifact: UUID, data: Any, *, description: str) -> None:
    """Replace the content of an artifact."""
    with get_client(sync_client=True) as client:
        replace(client, artifact, data=data, description=description)


def replace(client: SyncPrefectClient, artifact: UUID, **content: Any) -> None:
    """Replace `data`, `description` or both of an artifact; `update_artifact` of Prefect's client emits an event.

    Raises:
        ObjectNotFound: there is no such artifact.
    """
    try:
        client.request("PATCH", "/artifacts/{id}", json=content, path_params={"id": artifact})
    except PrefectHTTPStatusError as error:
        if error.response.status_code == HTTPStatus.NOT_FOUND:
            raise ObjectNotFound(error) from error
        raise
