"""The params section `subject`: trigger and class noun, used by captions, prompts and evaluation."""

from zimage.captions.template import ClassNoun
from zimage.core.section import Section


class Subject(Section):
    """The trigger word for the person, and the class noun."""

    trigger: str
    """A rare string that stands for the person in captions and prompts; never the real name."""
    class_noun: ClassNoun
    """What the base model already knows such a person as: person, man or woman."""
