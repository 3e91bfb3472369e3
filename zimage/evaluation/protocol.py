"""The version of the evaluation's protocol, which stands in every result.

infra/protocol.md says what the version holds. Whoever changes a definition, a prompt, a seed, a threshold or an
interval, so that a number of today could not be compared with one of before, adds 1 here.
"""

PROTOCOL_VERSION = 2
