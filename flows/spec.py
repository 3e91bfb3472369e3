"""The parameters of each flow as pydantic models that forbid unknown fields."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Subject = Annotated[
    str,
    Field(
        title="Person",
        pattern=r"^[a-z0-9][a-z0-9_-]{1,40}$",
        description="A pseudonym of small letters, digits, - and _, never a real name; `demo` is the demonstration.",
    ),
]
HubRepository = Annotated[
    str,
    Field(
        title="On the hub too",
        pattern=r"^([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})?$",
        description="A release goes to owner/name on the Hugging Face Hub too, a repository of this person only; made, "
        "private, if it is not there.",
    ),
]
AcceptToy = Annotated[
    bool,
    Field(
        title="Also of the toy model",
        description="Publish a LoRA of the packaged toy model too, which does nothing with the real Z-Image.",
    ),
]
Preset = Literal["", "tiny", "8gb", "16gb", "24gb", "80gb", "turbo-8gb", "turbo-16gb", "turbo-24gb", "turbo-80gb"]
ClassNoun = Literal["", "person", "man", "woman"]
Publish = Literal["never", "ask", "pass", "provisional"]
Placement = Literal["local", "pools"]
Use = Literal["non-commercial", "commercial"]
Channel = Literal["staging", "production"]


def number_fields(schema: dict[str, Any]) -> None:
    """Give each field of a form its position: PostgreSQL keeps a schema as JSONB, which sorts keys by their length."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


CONFIG = ConfigDict(extra="forbid", frozen=True, json_schema_extra=number_fields)


class SubjectSpec(BaseModel):
    """The subject of a run."""

    model_config = CONFIG
    subject: Subject


class PlacedSpec(SubjectSpec):
    """The subject of a run, and where its phases run."""

    placement: Placement = Field(
        "local",
        title="Where",
        description="local: all on the machine that takes this run; pools: each phase on a worker of its kind.",
    )


class PrepareSpec(PlacedSpec):
    """Photos in, training and held-out crops out. The first time give photos and consent; what is left empty stays."""

    photos: str = Field(
        "",
        title="Photos",
        description="A folder, a zip or tar archive, or s3://bucket/prefix, as the worker sees it.",
    )
    consent: str = Field(
        "",
        title="Consent",
        description="The file that says what this person agreed to, or s3://bucket/key of it, as the worker sees it.",
    )
    overrides: str = Field("", title="Decisions", description="A folder: decisions.yaml, captions/PHOTO.txt.")
    reference: str = Field(
        "",
        title="Reference photo",
        description="A photo of the album that shows the person alone, by its name in the album or its code on the "
        "contact sheet; of several people in an album it says who is meant. More than one: separate them by commas.",
    )
    class_noun: ClassNoun = Field(
        "",
        title="Class noun",
        description="What the base model calls such a person, in captions and prompts. Required the first time.",
    )
    trigger: str = Field(
        "",
        title="Trigger",
        description="A rare word of small letters that stands for the person in prompts; `ohzw` unless one is chosen. "
        "Choose different ones for people whose LoRAs are used together.",
    )
    base: str = Field(
        "",
        title="Base model",
        description="A folder in diffusers' layout, or a hub id in the worker's cache.",
    )
    preset: Preset = Field(
        "",
        title="Preset",
        description="Values for a base and a GPU's memory; turbo-… for the distilled Turbo.",
    )
    engine: str = Field(
        "",
        title="Face engine",
        description="yunet-sface or dlib (embedded, both screen), or the name or folder of an insightface pack, such "
        "as buffalo_l; used wherever faces are compared, with its own limits.",
    )
    steps: int = Field(
        0, title="Training steps", ge=0, le=50_000, description="Of the optimiser; 0 leaves what was chosen before."
    )
    rank: int = Field(
        0, title="Rank of the LoRA", ge=0, le=256, description="Of every adapter; 0 leaves what was chosen before."
    )
    init_lora: str = Field(
        "",
        title="Go on from a LoRA",
        description="A Z-Image LoRA file of any tool whose change the training begins with, as the worker sees it.",
    )
    values: list[str] = Field(
        [], title="Own values", description="SECTION.KEY=VALUE as in params.yaml, such as train.steps=800."
    )

    def chosen(self) -> dict[str, Any]:
        """Return all values of params.yaml that were chosen here, by `section.key`.

        Raises:
            InputError: an entry of `values` is no assignment, or there is no such LoRA file.
        """
        from zimage.core.params import parsed
        from zimage.lora.files.given import pinned_lora

        named = {
            "detect.subject.reference": [name for each in self.reference.split(",") if (name := each.strip())],
            "subject.class_noun": self.class_noun,
            "subject.trigger": self.trigger,
            "train.steps": self.steps,
            "train.rank": self.rank,
            "train.init_lora": pinned_lora(self.init_lora) if self.init_lora else None,
        }
        return {key: value for key, value in named.items() if value} | parsed(self.values)


class LearnSpec(PlacedSpec):
    """Crops in; captions, the LoRA, its score and the report out."""


class ScoreSpec(PlacedSpec):
    """LoRA files, finished pictures or a base model in; their scores against real photos and a comparison out."""

    photos: str = Field(
        "",
        title="Photos",
        description="Real photos of the person: a folder, a zip or tar archive, or s3://bucket/prefix, as the worker "
        "sees it.",
    )
    consent: str = Field(
        "",
        title="Consent",
        description="The file that says what this person agreed to, or s3://bucket/key of it; not needed where it is "
        "known already.",
    )
    loras: list[str] = Field(
        [],
        title="LoRA files",
        description="FILE or FILE:STRENGTH of a Z-Image LoRA of any tool, or s3://bucket/key of it, as the worker sees "
        "it.",
    )
    pictures: list[str] = Field(
        [],
        title="Finished pictures",
        description="A folder, a zip or tar archive, or s3://bucket/prefix of pictures, however they were made.",
    )
    bases: list[str] = Field(
        [],
        title="Base models",
        description="Folders in diffusers' layout, or hub ids in the worker's cache: everything is scored on each; "
        "alone, a base itself is scored.",
    )
    used_as: list[str] = Field(
        [],
        title="Also used as",
        description="Further ways in which everything is scored, such as merged (as ComfyUI applies a LoRA), "
        "bfloat16, fp8, int8, dpmpp_2m, side_px=768; several with commas between them.",
    )
    preset: Preset = Field(
        "", title="Preset", description="Values for a base and a GPU's memory; turbo-… for the distilled Turbo."
    )
    engine: str = Field(
        "",
        title="Face engine",
        description="yunet-sface or dlib (embedded, both screen), or the name or folder of an insightface pack, such "
        "as buffalo_l.",
    )
    class_noun: ClassNoun = Field(
        "",
        title="Class noun",
        description="What the base model calls such a person; required unless it was chosen for the subject.",
    )
    trigger: str = Field(
        "", title="Trigger", description="The word that calls the person; else what each file's metadata says."
    )
    strength: float = Field(
        1.0, title="Strength", ge=-4.0, le=4.0, description="Of each LoRA that says none behind its file."
    )
    seeds: int = Field(
        0, title="Seeds", ge=0, le=64, description="Pictures of each prompt; 0 for evaluate.seeds.test of params.yaml."
    )
    precision: float = Field(
        0.0,
        title="Precision",
        ge=0.0,
        lt=0.5,
        description="Half of the width that the interval of the share of the same person shall have, such as 0.05; "
        "chooses the seeds.",
    )
    review: str = Field(
        "",
        title="Review",
        description="What review.html of an earlier run of the same pictures saved: a file, or s3://bucket/key of one.",
    )
    blind: bool = Field(
        False,
        title="Blind page too",
        description="Also blind.html, which shows the pictures of each prompt without names, and its key.",
    )
    values: list[str] = Field(
        [], title="Own values", description="SECTION.KEY=VALUE as in params.yaml, such as evaluate.sampling.steps=8."
    )

    def chosen(self) -> dict[str, Any]:
        """Return the values of params.yaml that were chosen here, by `section.key`.

        Raises:
            InputError: an entry of `values` is no assignment.
        """
        from zimage.core.params import parsed

        return parsed(self.values)


class PublishSpec(PlacedSpec):
    """A finished workspace in, a release out."""

    accept_provisional: bool = Field(
        False,
        title="Also provisional",
        description="Publish a provisional verdict too: too few photos, or an engine that only screens.",
    )
    use: Use = Field(
        "non-commercial", title="Use", description="What the release is for; licences of models may forbid it."
    )
    accept_toy: AcceptToy = False
    hub_repository: HubRepository = ""
    approval: bool = Field(False, title="Ask first", description="Wait for a person who sees verdict and report.")
    review: str = Field("", title="Review", description="What review.html saved: a file, or s3://bucket/key of one.")
    score: str = Field(
        "",
        title="Score",
        description="The metrics.json of a zimage score of this LoRA, or s3://bucket/key of one: the release states "
        "strength and settings for each way of use in it.",
    )


class RetrainSpec(BaseModel):
    """Every subject is looked at, and `personalize` is started where something changed."""

    model_config = CONFIG
    only_look: bool = Field(False, title="Only look", description="Start nothing; the table says what would be.")
    publish: Publish = Field(
        "never",
        title="Publish",
        description="never; ask: a person decides; pass: if the verdict is; provisional: also if it is that.",
    )


class PersonalizeSpec(PrepareSpec):
    """Photos in; LoRA, score, report and a release out. The first time give photos and consent; what is empty stays."""

    publish: Publish = Field(
        "never",
        title="Publish",
        description="never; ask: a person decides; pass: if the verdict is; provisional: also if it is that.",
    )
    accept_toy: AcceptToy = False
    hub_repository: HubRepository = ""


class PromoteSpec(SubjectSpec):
    """A release into a channel, or back to the one before."""

    channel: Channel = Field(
        "staging", title="Channel", description="staging, or production, which needs the verdict pass."
    )
    release: str = Field(
        "",
        title="Release",
        pattern=r"^([1-9][0-9]{0,8}-[0-9a-f]{8})?$",
        description="Such as 3-0a1b2c3d; else the newest.",
    )
    back: bool = Field(False, title="Roll back", description="To the release that the channel pointed to before.")
    accept_provisional: bool = Field(
        False, title="Also provisional", description="Into production although the verdict is provisional."
    )


class FetchSpec(SubjectSpec):
    """The release that a channel points to, written into a folder."""

    channel: Channel = Field("production", title="Channel", description="staging or production.")
    out: str = Field("", title="Folder", description="Gets the files; else SUBJECT-CHANNEL, here.")
    key: str = Field(
        "",
        title="Public key",
        description="A PEM file with the publisher's public key or certificate; a release that was not signed with it "
        "is refused.",
    )


class ForgetSpec(SubjectSpec):
    """All there is of a person, or of one photo, listed or deleted."""

    photo: str = Field(
        "",
        title="One photo",
        description="Only this photo and what was made of albums with it: a file that holds it, as the worker sees it, "
        "or its name in the album.",
    )
    delete: bool = Field(False, title="Delete", description="Delete all that is listed; else nothing changes.")
    cancel: bool = Field(False, title="Cancel runs", description="End runs that are at work on the person first.")
