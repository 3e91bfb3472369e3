"""Suites of few prompts for evaluations of tiny models."""

SUITE = """prompts:
  - {id: near-1, kind: likeness, aspect: near, language: en, text: "a photo of {subject}, close-up of the face"}
  - {id: near-2, kind: likeness, aspect: near, language: en, text: "a photo of {subject}, smiling"}
  - {id: far-1, kind: likeness, aspect: far, language: en, text: "a photo of {subject}, head and shoulders"}
  - {id: far-2, kind: likeness, aspect: far, language: en, text: "a photo of {subject} on a beach"}
  - {id: leak-1, kind: leak_class, aspect: leak, language: en, text: "a photo of {class}, close-up of the face"}
"""
SECOND_PERSON = """\
  - {id: leak-2, kind: leak_two, aspect: leak, language: en, text: "a photo of {subject} and {other}"}
"""
WITH_A_SECOND_PERSON = SUITE + SECOND_PERSON
