"""Write infra/settings.md, infra/errors.md and the constants in infra/protocol.md from the code.

Usage: pages.py [FOLDER], by default infra/. `make pages` runs it; tests/test_pages.py fails where a page is not what this
writes. Keys come from the params sections of the stages, messages from every `raise` of an error that a user can cause,
environment variables from the constants in the code; only what a variable means is written here.
"""

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from zimage.core.plain_yaml import load_trusted
from zimage.core.signatures import STAGES, imported, signature

PROJECT = Path(__file__).parent.parent
PACKAGES = ("zimage", "tasks", "flows")
VARIABLE = re.compile(r"ZIMAGE_[A-Z0-9_]*[A-Z0-9]|(?:AWS|HF|DVC|OMP|PREFECT)_[A-Z0-9_]*[A-Z0-9]|DO_NOT_TRACK")
# What no user sets: names that a part of the project sets for its own processes.
INTERNAL = frozenset(
    {
        "DVC_NO_ANALYTICS", "DVC_STAGE", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "OMP_NUM_THREADS", "PREFECT_UI_ENABLED",
        "PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_SERVER_EVENTS_RETENTION_PERIOD", "PREFECT_SERVER_REGISTER_BLOCKS_ON_START",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED", "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT",
        "PREFECT__SERVER_EPHEMERAL", "PREFECT__SERVER_FINAL", "ZIMAGE_COMMIT", "ZIMAGE_PART_OF", "ZIMAGE_PROGRESS",
    }
)  # fmt: skip
# Group: (name, value if unset, meaning).
VARIABLES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "Places": (
        ("ZIMAGE_WORKSPACES", "`workspaces/` in the clone", "folder with one workspace for each subject"),
        ("ZIMAGE_STORE", "`store/` in the clone", "folder, `file://` address or `s3://bucket/prefix` of releases and states"),
        ("ZIMAGE_PAGES", "none", "address at which a browser reaches pages of the store"),
        ("AWS_ENDPOINT_URL_S3", "Amazon's", "address of another server that speaks S3; wins over AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL", "Amazon's", "the same for all services of AWS"),
        ("HF_ENDPOINT", "huggingface.co", "address of the Hugging Face Hub"),
        ("DVC_SITE_CACHE_DIR", "`/var/tmp/dvc`", "where DVC remembers files of workspaces"),
    ),
    "This machine; no result depends on it": (
        ("ZIMAGE_PROCESSES", "the number of cores", "processes of one thread that share a stage's work on a CPU"),
        ("ZIMAGE_MACHINE", "none", "values for the section `machine` of params.yaml, as `KEY=VALUE KEY=VALUE`"),
        ("OMP_WAIT_POLICY", "`PASSIVE`", "whether waiting threads spin (`ACTIVE`), which slows down a busy machine"),
    ),
    "Runs and limits": (
        ("ZIMAGE_AT_ONCE", "by cores and memory", "number of `personalize` runs at once, 1 or more; read when the pools are made"),
        ("ZIMAGE_LOST_AFTER_S", "by the heartbeat", "seconds of silence after which a run counts as lost"),
        ("ZIMAGE_PENDING_S", "by the deployment", "seconds within which a run has to begin"),
        ("ZIMAGE_REPLACED_DAYS", "30", "days for which replaced photos and results stay, 0 or more"),
        ("ZIMAGE_NOTIFY", "none", "webhook for failed runs, failed gates and consents that end; a secret"),
    ),
    "Signing and the hub": (
        ("ZIMAGE_C2PA_CERTIFICATES", "no signature", "PEM file: the signer's certificate, then those that vouch for it"),
        ("ZIMAGE_C2PA_KEY", "no signature", "PEM file with its private key, PKCS #8 without a passphrase"),
        ("ZIMAGE_C2PA_ALGORITHM", "`es256`", "`es256`, `es384`, `es512`, `ps256`, `ps384`, `ps512` or `ed25519`: what fits the key"),
        ("ZIMAGE_C2PA_TIMESTAMPS", "none", "address of a time-stamp authority (RFC 3161)"),
        ("HF_TOKEN", "none", "token that may write to the hub; a secret"),
        ("HF_HUB_OFFLINE", "`1` in stages", "`0` lets `publish` and `forget` reach the hub where an image sets `1`"),
    ),
    "Prefect (its own variables that the project reads or sets where they are unset)": (
        ("PREFECT_API_URL", "a server of the run's own", "address of a Prefect server, such as `http://HOST:4200/api`"),
        ("PREFECT_API_AUTH_STRING", "the server's", "`NAME:PASSWORD` that clients send"),
        ("PREFECT_SERVER_API_AUTH_STRING", "none", "`NAME:PASSWORD` that the server asks for"),
        ("PREFECT_HOME", "`~/.prefect`", "folder of Prefect's database and settings"),
        ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PostgreSQL from a package", "the server's database; one that is set wins"),
        ("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "files", "where leases lie, so that they outlive the server"),
        ("PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED", "`events,orphans`", "what the server deletes by itself"),
        ("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "this machine", "addresses from which browsers and workers ask"),
        ("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", "`true`", "whether the server refuses forged requests"),
        ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30", "seconds between a run's signs of life"),
        ("PREFECT_WORKER_QUERY_SECONDS", "2", "seconds between a worker's questions for work"),
    ),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Write the pages into the folder that is named, or into infra/."""
    folder = Path(arguments[0]) if arguments else PROJECT / "infra"
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {"settings.md": settings(), "errors.md": errors(), "protocol.md": protocol()}


def settings() -> str:
    """Return the page of environment variables and of the keys of params.yaml."""
    lines = [
        "# Settings",
        "",
        "Generated by `make pages`; a test compares it with the code. What can change a result is in params.yaml; what differs from",
        "machine to machine is in the environment.",
        "",
        "## Environment variables",
        "",
    ]
    for group, rows in VARIABLES.items():
        lines += [f"### {group}", "", "| variable | if unset | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | {unset} | {meaning} |" for name, unset, meaning in rows]
        lines.append("")
    demo = load_trusted((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    lines += [
        "## params.yaml",
        "",
        "*demo* is the value in the project's own params.yaml; presets for real photos (`zimage/assets/presets.yaml`) change some.",
        "Types are checked when a stage starts: a text is no number, but for one such as '1e-4' where a number with decimals is wanted;",
        "an unknown key is an error that names the nearest one.",
        "",
    ]
    for name, kind in _sections().items():
        readers = [stage for stage in STAGES if name in signature(stage).sections.values()]
        by = "" if readers == [name] else f" (read by {', '.join(readers)})"
        lines += [f"### {name}{by}", "", "| key | type and range | demo | meaning |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in _rows(kind, demo.get(name), "")]
        lines.append("")
    return "\n".join(lines)


def used_variables() -> set[str]:
    """Return every environment variable that the code names."""
    return {
        node.value
        for path in _sources()
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and VARIABLE.fullmatch(node.value)
    }


def listed_variables() -> set[str]:
    """Return every environment variable that the page names, and those that no user sets."""
    return {name for rows in VARIABLES.values() for name, _, _ in rows} | INTERNAL


def _sections() -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for stage in STAGES:
        one = signature(stage)
        kinds = imported(one)[1]
        found |= {section: kinds[keyword] for keyword, section in one.sections.items()}
    order = list(load_trusted((PROJECT / "params.yaml").read_text(encoding="utf-8")))
    return {name: found[name] for name in sorted(found, key=order.index)}


def _rows(kind: type[BaseModel], values: Any, prefix: str) -> Iterator[list[str]]:
    meanings = _meanings(kind)
    for name, field in kind.model_fields.items():
        value = values.get(name) if isinstance(values, dict) else None
        inner, optional = _inner(field.annotation)
        key = f"`{prefix}{name}`"
        if inner is not None:
            meaning = meanings.get(name) or _first_line(inner)
            yield [
                key,
                "section or null" if optional else "section",
                "null" if optional and value is None else "",
                meaning,
            ]
            yield from _rows(inner, value, f"{prefix}{name}.")
            continue
        shown = _shown(value) if isinstance(values, dict) and name in values else ""
        yield [key, _type(field), shown, _cell(meanings.get(name, ""))]


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the section that a field holds, if it holds one, and whether it may be null."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    kinds = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
    return (kinds[0] if kinds else None), type(None) in options


def _meanings(kind: type[BaseModel]) -> dict[str, str]:
    """Return what each field of a section means: its description, or the docstring below it."""
    found: dict[str, str] = {}
    for one in reversed([base for base in kind.__mro__ if issubclass(base, BaseModel) and base is not BaseModel]):
        (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(text, str):
                found[node.target.id] = " ".join(text.split())
    return found | {name: field.description for name, field in kind.model_fields.items() if field.description}


def _first_line(kind: type[BaseModel]) -> str:
    return _cell((kind.__doc__ or "").strip().splitlines()[0])


def _type(field: FieldInfo) -> str:
    limits = {annotated_types.Gt: ">", annotated_types.Ge: ">=", annotated_types.Lt: "<", annotated_types.Le: "<="}
    said = [
        f"{sign} {getattr(limit, type(limit).__name__.lower())}"
        for limit in field.metadata
        for kind, sign in limits.items()
        if isinstance(limit, kind)
    ]
    least = [limit.min_length for limit in field.metadata if isinstance(limit, annotated_types.MinLen)]
    most = [limit.max_length for limit in field.metadata if isinstance(limit, annotated_types.MaxLen)]
    if least or most:
        said.append(f"{least[0] if least else 0} to {most[0]} of them" if most else f"at least {least[0]}")
    return _cell(", ".join([_name(field.annotation), *said]))


def _name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_name(one) for one in get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_name(get_args(annotation)[0])}"
    if get_origin(annotation) is not None and get_origin(annotation) is not dict:
        return _name(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"`{{{', '.join(annotation.model_fields)}}}`"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()
    return _cell(f"`{text}`" if len(text) <= 60 else f"`{text[:40]}` …")


def errors() -> str:
    """Return the page of messages that a user can cause."""
    kinds = _error_kinds()
    lines = [
        "# Errors",
        "",
        "Generated by `make pages`; a test compares it with the code. Every message that a user can cause, by the module that raises",
        "it; ‹…› stands for what was found. The command line prints it after `zimage:` or `flows:` and ends with exit code 2; in the",
        "UI it is the state of the run. What is not listed here is a fault of the project and keeps its traceback.",
        "",
        "| class | what it is | where |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | {line} | `{path}` |" for name, (path, line) in sorted(kinds.items())]
    lines.append("")
    for path in _sources():
        messages = list(dict.fromkeys(_messages(path, frozenset(kinds))))
        if messages:
            lines += [f"## {path.relative_to(PROJECT).as_posix()}", "", "| message | remedy |", "|---|---|"]
            lines += [f"| {message} | {remedy} |" for message, remedy in messages]
            lines.append("")
    return "\n".join(lines)


BEGIN, END = "<!-- written by `make pages` from the code -->", "<!-- end of what is written -->"


BETTER = {True: "more", False: "less", None: "neither"}


def protocol() -> str:
    """Return the page of the evaluation's protocol: its own text, with the constants of the code between the marks."""
    page = (PROJECT / "infra" / "protocol.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    return "\n".join([f"{before}{BEGIN}", "", *_constants(), f"{END}{rest.partition(END)[2]}"])


def _constants() -> Iterator[str]:
    """Yield the lines of the constants that a number of the evaluation depends on."""
    from zimage.evaluation import compare, hidden, intervals
    from zimage.evaluation.gate import USUAL
    from zimage.evaluation.generate import suite
    from zimage.evaluation.generate.image_cache import Request
    from zimage.evaluation.protocol import PROTOCOL_VERSION
    from zimage.evaluation.score import copies, impostors
    from zimage.faces import quality
    from zimage.faces.engine import open_engine
    from zimage.faces.engine_defaults import EMBEDDED, INSIGHTFACE_MAX_DISTANCE, INSIGHTFACE_MIN_SCORE
    from zimage.faces.insightface_engine import RELEASED

    params = load_trusted((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    evaluated = params["evaluate"]
    yield from (f"**Version {PROTOCOL_VERSION}**", "", "| constant | value | where |", "|---|---|---|")
    for name, value, where in (
        ("confidence of an interval", intervals.CONFIDENCE, "zimage/evaluation/intervals.py"),
        ("`undefined`: share of resamples without a value", intervals.MOST_UNDEFINED, "zimage/evaluation/intervals.py"),
        ("`error`: of all intervals of one measure together", compare.ERROR, "zimage/evaluation/compare.py"),
        ("resamples of the prompts", evaluated["resampling"]["resamples"], "evaluate.resampling.resamples"),
        ("seed of the resampling", evaluated["resampling"]["seed"], "evaluate.resampling.seed"),
        ("`thumb`: side of a grey square, px", copies.SIDE_PX, "zimage/evaluation/score/copies.py"),
        ("`copy_correlation`", evaluated["copy_correlation"], "evaluate.copy_correlation"),
        ("side of a control's picture over that of its face", impostors.AROUND, "zimage/evaluation/score/impostors.py"),
        ("a head is turned from, degrees", quality.FRONTAL_DEG, "zimage/faces/quality.py"),
        ("a face is small below, share of the picture's height", hidden.SMALL_FACE, "zimage/evaluation/hidden.py"),
        ("light is dim below, mean luma of the face", hidden.DIM, "zimage/captions/template.py"),
        ("share of photos held out", params["detect"]["split"]["holdout_share"], "detect.split.holdout_share"),
        ("photos held out at least", params["detect"]["split"]["min_holdout"], "detect.split.min_holdout"),
        ("seed of what is held out", params["detect"]["split"]["seed"], "detect.split.seed"),
    ):
        yield f"| {name} | {value} | `{where}` |"
    yield from ("", "| rule of the gate | usual limit |", "|---|---|")
    for name, limit in USUAL:
        yield f"| `{name}` | {limit} |"
    yield from ("", "| compared by `score` | what it is | better is |", "|---|---|---|")
    for measure in compare.MEASURES:
        yield f"| `{measure.name}` | {measure.says} | {BETTER[measure.more_is_better]} |"
    yield from (
        "",
        "| engine | metric | threshold | detector's score from | file | SHA-256 |",
        "|---|---|---|---|---|---|",
    )
    for engine in EMBEDDED.values():
        info = open_engine(engine).info
        for file, sha256 in sorted(info.model_sha256.items()):
            row = (f"`{info.engine_id}`", info.metric, info.threshold, engine.min_score, f"`{file}`", f"`{sha256}`")
            yield f"| {' | '.join(map(str, row))} |"
    for file, sha256 in RELEASED.items():
        yield (
            f"| insightface packs | cosine | {INSIGHTFACE_MAX_DISTANCE} | {INSIGHTFACE_MIN_SCORE} | `{file}` "
            f"| `{sha256}` |"
        )
    yield from ("", "| control: photo of another person | SHA-256 |", "|---|---|")
    for package, file, sha256 in impostors.PACKAGED:
        yield f"| {package}: `{file}` | `{sha256}` |"
    for name in sorted(path.stem for path in suite.FOLDER.glob("*.yaml")):
        prompts = suite.read_suite(name)
        sides = suite.halves(prompts)
        yield from ("", f"Suite `{name}`; the seed is that of picture 0.", "")
        yield from ("| id | kind | aspect | half | seed of the noise | text |", "|---|---|---|---|---|---|")
        for prompt in prompts:
            seed = Request(prompt.id, "", 0, None, 0.0).noise_seed
            yield (
                f"| {prompt.id} | {prompt.kind} | {prompt.aspect} | {sides[prompt.id]} | {seed} | {_cell(prompt.text)} |"
            )
    yield ""


def _sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))


def _error_kinds() -> dict[str, tuple[str, str]]:
    """Return where each class of errors that a user can cause is defined, and its first line."""
    classes = {
        node.name: (path.relative_to(PROJECT).as_posix(), node)
        for path in _sources()
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.ClassDef)
    }
    found = {"InputError", "StoreError", "RefusedError"}
    while (
        new := {name for name, (_, node) in classes.items() if {ast.unparse(base) for base in node.bases} & found}
        - found
    ):
        found |= new
    public = {name for name in found if not name.startswith("_")}
    return {
        name: (classes[name][0], _cell((ast.get_docstring(classes[name][1]) or "").split("\n")[0])) for name in public
    }


def _messages(path: Path, kinds: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield the message and the remedy, which goes after the last semicolon, of each error that a file raises."""
    tree = ast.parse(path.read_bytes())
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for sentence in _sentences(tree, kinds):
        text = " ".join(_template(sentence, constants).split())
        if not re.search(r"[a-z]{3}", re.sub("‹[^›]*›", "", text)):
            continue  # put together elsewhere, where it is listed
        message, semicolon, remedy = text.rpartition("; ")
        if not semicolon:
            message, full_stop, remedy = text.partition(". ")
            message = message + full_stop.strip()
        yield _cell(message), _cell(remedy)


def _sentences(tree: ast.Module, kinds: frozenset[str]) -> Iterator[ast.expr]:
    """Yield the sentence of each error that is made, and of each pair of a short code and a sentence: a refused photo."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).split(".")[-1] in kinds:
            yield node.args[-1] if isinstance(node.func, ast.Name) and node.func.id == "RefusedError" else node.args[0]
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            code, sentence = node.elts
            text = _template(sentence, {}) if _is_text(sentence) else ""
            coded = isinstance(code, ast.Constant) and re.fullmatch(r"[a-z_]+", str(code.value))
            if coded and re.fullmatch(r"[A-Z].*[a-z )]\.", text):
                yield sentence


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _template(node: ast.expr, constants: Mapping[str, Any]) -> str:
    match node:
        case ast.Name(id=name) | ast.FormattedValue(value=ast.Name(id=name)) if name in constants:
            return str(constants[name])
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_template(part, constants) for part in parts)
        case ast.FormattedValue(value=value):
            return f"‹{_placeholder(value)}›"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left, constants) + _template(right, constants)
        case ast.IfExp(body=body, orelse=orelse):
            both = [text for text in (_template(body, constants), _template(orelse, constants)) if text]
            return both[0] if len(both) == 1 else f"[{' | '.join(both)}]"
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str()), attr="join")):
            return "‹list›"
        case _:
            return f"‹{_placeholder(node)}›"


def _placeholder(node: ast.expr) -> str:
    """Return the last name in an expression: `photo` for `self.photo!r` and for `len(photo)`."""
    names = re.findall(r"[A-Za-z_]\w*", re.sub(r"(['\"]).*?\1", "", ast.unparse(node)))
    known = [
        name for name in names if name not in {"len", "str", "sorted", "join", "self", "for", "in", "if", "else", "not"}
    ]
    return (known[-1] if known else "value").strip("_").replace("_", " ")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
