from uuid import UUID

from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.states import Pending

from flows.spec import ForgetSpec, LearnSpec, RetrainSpec
from tasks.prefect_api.run_labels import name_this_run, reasons_now, tag_this_run, why_tags

ADA = {"spec": {"subject": "ada"}}


@flow(name="learn", flow_run_name=name_this_run, on_running=[tag_this_run])
def learn(spec: LearnSpec) -> tuple[str, list[str]]:
    return flow_run.id, reasons_now()


@flow(name="personalize", flow_run_name=name_this_run, on_running=[tag_this_run])
def personalize(spec: LearnSpec) -> str:
    with tags(*why_tags()):
        return learn(spec)[0]


@flow(name="retrain", flow_run_name=name_this_run, on_running=[tag_this_run])
def retrain(spec: RetrainSpec) -> None:
    """Do nothing."""


@flow(name="forget", flow_run_name="forget", on_running=[tag_this_run])
def forget(spec: ForgetSpec) -> str:
    return flow_run.id


def read(run: object) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(str(run)))


def test_a_run_that_a_person_asked_for_says_so(prefect_server: None) -> None:
    run, reasons = learn(LearnSpec(subject="ada"))

    assert reasons == ["asked"]
    assert read(run).name == "learn ada (asked)"
    assert set(read(run).tags) == {"phase:learn", "subject:ada", "why:asked"}


def test_a_part_runs_for_the_reasons_of_the_run_it_belongs_to_and_own_tags_stay(prefect_server: None) -> None:
    given = ["why:photos changed", "why:code changed", "mine"]
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(personalize, parameters=ADA, tags=given, state=Pending())
    part = run_flow(personalize, flow_run=run, parameters={"spec": LearnSpec(subject="ada")})

    assert read(run.id).name == "personalize ada (code changed, photos changed)"
    assert set(read(run.id).tags) == {*given, "phase:personalize", "subject:ada"}
    assert read(part).name == "learn ada (code changed, photos changed)"
    assert set(read(part).tags) == {"phase:learn", "subject:ada", *given[:2]}


def test_a_run_about_everybody_names_nobody_and_a_forgetting_names_nobody(prefect_server: None) -> None:
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(retrain, parameters={"spec": {}}, state=Pending())
    run_flow(retrain, flow_run=run, parameters={"spec": RetrainSpec()})
    forgetting = forget(ForgetSpec(subject="ada"))

    assert read(run.id).name == "retrain (asked)"
    assert set(read(run.id).tags) == {"phase:retrain", "why:asked"}
    assert read(forgetting).name == "forget"
    assert set(read(forgetting).tags) == {"phase:forget", "why:asked"}
