"""What a flow can be asked. One model per flow: unknown fields are refused before anything runs."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Subject = Annotated[
    str,
    Field(
        title="Person",
        pattern=r"^[a-z0-9][a-z0-9_-]{1,40}$",
        description="A pseudonym, never a real name; `demo` is the demonstration.",
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
Preset = Literal["", "tiny", "8gb", "16gb", "24gb", "80gb", "turbo-8gb", "turbo-16gb", "turbo-24gb", "turbo-80gb"]
Publish = Literal["never", "ask", "pass", "provisional"]
Placement = Literal["local", "pools"]
Use = Literal["non-commercial", "commercial"]
Channel = Literal["staging", "production"]


class SubjectSpec(BaseModel):
    """Whose workspace it is about."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    subject: Subject


class PlacedSpec(SubjectSpec):
    """Whose workspace it is about, and where the work is done."""

    placement: Placement = Field(
        "local",
        title="Where",
        description="local: where this run is; pools: each leg on a worker of its own, through the store.",
    )


class PrepareSpec(PlacedSpec):
    """Photos in, training and held-out crops out. What is left empty stays as it was chosen before."""

    photos: str = Field("", title="Photos", description="A folder, a zip or tar archive, or s3://bucket/prefix.")
    consent: str = Field("", title="Consent", description="The file that says what the person agreed to.")
    overrides: str = Field("", title="Decisions", description="A folder: decisions.yaml, captions/PHOTO.txt.")
    base: str = Field("", title="Base model", description="A folder in diffusers' layout, or a hub id in the cache.")
    preset: Preset = Field("", title="Preset", description="Values that suit a base model and a GPU.")
    values: list[str] = Field([], title="Own values", description="SECTION.KEY=VALUE, such as train.steps=800.")


class LearnSpec(PlacedSpec):
    """Crops in; captions, the LoRA, its score and the report out."""


class PublishSpec(PlacedSpec):
    """A finished workspace in, a release out."""

    accept_provisional: bool = Field(False, title="Also provisional", description="Too few photos for a sure verdict.")
    use: Use = Field("non-commercial", title="Use", description="What for; licences of models may contradict it.")
    hub_repository: HubRepository = ""
    approval: bool = Field(False, title="Ask first", description="Wait for a person who sees verdict and report.")


class RetrainSpec(BaseModel):
    """Every subject is looked at, and `personalize` is started where something changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    only_look: bool = Field(False, title="Only look", description="Start nothing; the table says what would be.")
    publish: Publish = Field(
        "never", title="Publish", description="never; ask a person; if it passed; also if provisional."
    )


class PersonalizeSpec(PrepareSpec):
    """Photos in; the LoRA, its score, the report and, if asked for, a release out."""

    publish: Publish = Field(
        "never", title="Publish", description="never; ask a person; if it passed; also if provisional."
    )
    hub_repository: HubRepository = ""


class PromoteSpec(SubjectSpec):
    """A release into a channel, or back to the one before."""

    channel: Channel = Field("staging", title="Channel", description="staging, or production, which needs a pass.")
    release: str = Field(
        "",
        title="Release",
        pattern=r"^([1-9][0-9]{0,8}-[0-9a-f]{8})?$",
        description="Such as 3-0a1b2c3d; else the newest.",
    )
    back: bool = Field(False, title="Roll back", description="To the release that the channel pointed to before.")
    accept_provisional: bool = Field(False, title="Also provisional", description="Into production without a pass.")


class ForgetSpec(SubjectSpec):
    """All there is of a person, listed or deleted."""

    delete: bool = Field(False, title="Delete", description="Delete all that is listed; else nothing changes.")
    cancel: bool = Field(False, title="Cancel runs", description="End runs that are at work on the person first.")
