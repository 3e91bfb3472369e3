"""Flow `promote`: move a channel (staging, production) to a release, or back to the one before."""

from prefect import flow
from prefect.logging import get_run_logger

from flows.spec import PromoteSpec
from tasks.prefect_api.artifacts import show_channel
from tasks.prefect_api.run_labels import name_this_run, tag_this_run
from tasks.release import channels
from tasks.release.channels import Move
from tasks.settings import from_environment
from tasks.store.s3 import open_store


@flow(name="promote", flow_run_name=name_this_run, on_running=[tag_this_run])
def promote(spec: PromoteSpec) -> Move:
    """Return the move of the channel: to the release asked for, or back to the one before."""
    settings = from_environment()
    store, workspace = open_store(settings.store), settings.workspace(spec.subject)
    if spec.back:
        move = channels.rollback(store, spec.subject, spec.channel, workspace=workspace)
    else:
        move = channels.promote(
            store,
            spec.subject,
            spec.channel,
            spec.release,
            workspace=workspace,
            accept_provisional=spec.accept_provisional,
        )
    show_channel(store, spec.subject, spec.channel)
    get_run_logger().info("%s of %s is %s (%s)", spec.channel, spec.subject, move.release, move.kind)
    return move
