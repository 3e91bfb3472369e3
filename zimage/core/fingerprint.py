"""One hash per stage of the project code behind it: a stage is stale when the meaning of its code changes.

What counts is decided definition by definition, by reading source and never by importing it. From the stage's module
on, every function, class and assignment that a counted one names is counted too, in whatever module it stands, and with
each module what importing it executes. So a sentence of another command in a shared module changes no stage.

A comment, a docstring or a line break changes no hash, and every Python version computes the same. A data file counts
where counted code names it, by what it says and not by how it is laid out. What only draws pages does not count.
"""

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from zimage.core.signatures import STAGES

PACKAGE = Path(__file__).parent.parent
DEMO_PHOTOS = {"photos": "zimage.demo"}  # the stage of data/dvc.yaml: the demo subject's photos are made, not taken
ENTRIES = {**{stage: f"zimage.stages.{stage}" for stage in STAGES}, **DEMO_PHOTOS}
# No result depends on these: this module, modules that only draw pages or give advice from results in the same folder
# (which is done again when the stage runs again), the curve of held-out loss that no stage reads, trackers, and
# modules that only judge a LoRA file, which decide about refusals and messages.
UNCOUNTED = frozenset(
    {
        "zimage.core.fingerprint",
        "zimage.evaluation.report.report",
        "zimage.evaluation.report.coaching",
        "zimage.core.svg_charts",
        "zimage.curation.contact_sheet",
        "zimage.training.tracking",
        "zimage.training.validation",
        "zimage.lora.files.loaders",
        "zimage.lora.files.obstacles:obstacles",
        "zimage.lora.files.verdict:judge",
    }
)
DATA_SUFFIXES = frozenset({".yaml", ".json", ".txt"})  # not .jinja, .css, .html, .js: they are how pages look
ASSETS = "assets"  # the folder of data files, below the package
PATH = re.compile(r"\w[\w-]*(/\w[\w-]*)*(\.\w+)?")  # below that folder
LONGEST_NAME = 255  # bytes of a file's name on Linux; asking for a longer one raises
# Such a folder is a base model; its files count through `base.identity`, for the stages that read them.
MARK_OF_A_BASE = "model_index.json"
BODIES = ("body", "orelse", "finalbody", "handlers", "cases")  # fields of statements that hold statements
# Decorators that run none of our code when a module is imported. Under any other, a definition counts with its module.
PASSIVE_DECORATORS = frozenset({"cache", "contextmanager", "contextlib.contextmanager", "dataclass", "torch.no_grad"})


def fingerprints(package: Path = PACKAGE) -> dict[str, str]:
    """Return `sha256:<hex>` for each stage, and for the demo's photos, in pipeline order."""
    return {stage: fingerprint(module, package) for stage, module in ENTRIES.items()}


def fingerprint(module: str, package: Path = PACKAGE) -> str:
    """Return `sha256:<hex>` of the code and the package data that `module` can use.

    Args:
        module: Dotted name, for example `zimage.stages.train`; all its definitions count.
        package: The folder of the top-level package, whose name begins all dotted names.

    Raises:
        SyntaxError: A module imports another by a relative name.
    """
    found = reach(module, package)
    lines = [f"{name} {_hash_of_code(node)}\n" for name, node in found.code.items()]
    lines += [f"{file.relative_to(package).as_posix()} {_hash_of_data(file)}\n" for file in found.data]
    return f"sha256:{_hash(''.join(sorted(lines)).encode())}"


@dataclass
class Reach:
    """What a stage can use.

    Args:
        code: Each counted statement, by `module:name`, or `module:#position` where importing the module executes it.
        data: The data files that counted code names.
    """

    code: dict[str, ast.AST] = field(default_factory=dict)
    data: set[Path] = field(default_factory=set)

    def names_of(self, module: str) -> set[str]:
        """Return the counted functions, classes and variables of one module."""
        return {name for where, _, name in (key.partition(":") for key in self.code) if where == module}


def reach(module: str, package: Path = PACKAGE) -> Reach:
    """Return what `module` can use; see `fingerprint`."""
    search = _Search(package)
    search.whole(module)
    assert search.found.code or search.executed, f"there is no module {module}"
    search.run()
    return search.found


def as_yaml(hashes: dict[str, str]) -> str:
    """Return the text of code.yaml."""
    lines = [f"{stage}: {value}\n" for stage, value in hashes.items()]
    return "# Written by `make fingerprints`: what the code of each stage means. Do not edit.\n" + "".join(lines)


@dataclass(frozen=True)
class _Module:
    """A source file, taken apart.

    Args:
        path: Where it lies.
        definitions: The top-level statements that give a name its value, which are the body of the node.
        executed: Top-level statements that are executed on import and define nothing, and registered definitions.
        imports: The dotted names that each imported name can stand for, wherever in the module it is imported.
        executes: The dotted names that importing this module imports.
    """

    path: Path
    definitions: dict[str, ast.Module]
    executed: dict[str, ast.stmt]
    imports: dict[str, set[str]]
    executes: set[str]


class _Search:
    """Follows names from definition to definition."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.found = Reach()
        self.executed: set[str] = set()
        self._waiting: list[tuple[str, ast.AST]] = []
        self._modules: dict[str, _Module | None] = {}

    def run(self) -> None:
        """Follow until nothing new is found."""
        while self._waiting:
            self._follow(*self._waiting.pop())

    def whole(self, module: str) -> None:
        """Count all definitions of a module."""
        if found := self._read(module):
            for name in found.definitions:
                self._define(module, name)
            self._execute(module)

    def _follow(self, module: str, node: ast.AST) -> None:
        """Count everything that a counted statement names."""
        found = self._read(module)
        assert found, module
        names, texts = _named_by(node)
        for name in names:
            first, *rest = name.split(".")
            self._define(module, first)
            for target in found.imports.get(first, ()):
                # `a` in `a.b`, which is looked up as a whole
                if rest or not any(other.startswith(f"{name}.") for other in names):
                    self._resolve(".".join([target, *rest]))
        for text in texts:
            self._named_in_text(text)

    def _resolve(self, dotted: str) -> None:
        """Count what a dotted name stands for: a definition, or a whole module where none of its names is given."""
        parts = dotted.split(".")
        if parts[0] != self.package.name:
            return
        depth = next(depth for depth in range(len(parts), 0, -1) if self._read(".".join(parts[:depth])) or depth == 1)
        module, rest = ".".join(parts[:depth]), parts[depth:]
        found = self._read(module)
        if found and not rest:
            self.whole(module)
        elif found:
            self._define(module, rest[0])
            for target in found.imports.get(rest[0], ()) if rest[0] not in found.definitions else ():
                self._resolve(".".join([target, *rest[1:]]))
            self._execute(module)

    def _define(self, module: str, name: str) -> None:
        """Count a definition, where there is one of that name."""
        key, found = f"{module}:{name}", self._read(module)
        if found and name in found.definitions and key not in self.found.code and key not in UNCOUNTED:
            self.found.code[key] = found.definitions[name]
            self._waiting += [(module, statement) for statement in found.definitions[name].body]
            self._execute(module)

    def _execute(self, module: str) -> None:
        """Count what importing `module` executes: its own statements, those of its packages, and what it imports."""
        waiting = [module]
        while waiting:
            name = waiting.pop()
            found = self._read(name)
            if not found or name in self.executed:
                continue
            self.executed.add(name)
            for position, statement in found.executed.items():
                self.found.code[f"{name}:{position}"] = statement
                self._waiting.append((name, statement))
            waiting += [*found.executes, name.rpartition(".")[0]]

    def _named_in_text(self, text: str) -> None:
        """Count a module that is named as `package.module`, and a data file or folder that is named as it is called."""
        if text.startswith(f"{self.package.name}."):
            self.whole(text)
        elif PATH.fullmatch(text) and len(text.encode()) <= LONGEST_NAME:
            named = self.package / ASSETS / text
            self.found.data |= {file for file in (named, *_below(named)) if _is_data(file, self.package)}

    def _read(self, dotted: str) -> "_Module | None":
        """Return a module of the package that counts; None where there is none of that name."""
        if dotted not in self._modules:
            source = None if dotted in UNCOUNTED else _source_of(dotted, self.package)
            self._modules[dotted] = _parsed(source, source.read_bytes(), self.package.name) if source else None
        return self._modules[dotted]


def _source_of(dotted: str, package: Path) -> Path | None:
    """Return the file of a module of the package; None if there is none of that name."""
    parts = dotted.split(".")
    path = package.joinpath(*parts[1:])
    files = (path / "__init__.py", path.with_suffix(".py")) if parts[0] == package.name and all(parts) else ()
    return next((file for file in files if file.is_file()), None)


@cache
def _parsed(source: Path, content: bytes, package: str) -> _Module:
    module = _Module(source, {}, {}, {}, set())
    tree = ast.parse(content)
    _drop_texts(tree)
    for node in _statements(tree, without=_is_for_checkers):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise SyntaxError(f"{source}:{node.lineno}: relative import; this project imports by full names")
        for name, target in _imported(node):
            module.imports.setdefault(name, set()).add(target)
    for position, statement in enumerate(tree.body):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module.executes.update(_modules_of(statement, package))
        elif not _is_for_checkers(statement) and not _is_main(statement):
            names = _defined_by(statement)
            for name in names:
                module.definitions.setdefault(name, ast.Module(body=[], type_ignores=[])).body.append(statement)
            if not names or not _is_passive(statement):
                module.executed[f"#{position}"] = statement
    # A statement's place counts only among those that are executed: a new function above changes nothing.
    in_order = {f"#{place}": statement for place, statement in enumerate(module.executed.values())}
    return _Module(source, module.definitions, in_order, module.imports, module.executes)


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each name that an import gives a value, and the dotted name that it stands for."""
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        case ast.ImportFrom(module=str(origin), names=names):
            for alias in names:
                yield alias.asname or alias.name, f"{origin}.{alias.name}"


def _modules_of(statement: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    """Yield the modules of the package that an import statement may execute."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        names = [statement.module or "", *(f"{statement.module}.{alias.name}" for alias in statement.names)]
    yield from (name for name in names if name.split(".")[0] == package)


def _defined_by(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _is_passive(statement: ast.stmt) -> bool:
    decorators = getattr(statement, "decorator_list", [])
    called = [each.func if isinstance(each, ast.Call) else each for each in decorators]
    return all(ast.unparse(each) in PASSIVE_DECORATORS for each in called)


def _is_for_checkers(statement: ast.AST) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"


def _statements(node: ast.AST, without: Callable[[ast.AST], bool] = lambda _: False) -> Iterator[ast.AST]:
    """Yield a module and all statements, handlers and cases in it, but some and what is in those."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if not without(node):
            for name in BODIES:
                waiting += getattr(node, name, ())
            yield node


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a statement and all nodes in it, several times faster than `ast.walk`."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                waiting.append(value)
            elif isinstance(value, list):
                waiting += [each for each in value if isinstance(each, ast.AST)]


@cache
def _named_by(statement: ast.AST) -> tuple[set[str], set[str]]:
    """Return the names that a statement reads, each also with the attributes that follow it, and its texts."""
    names, texts = set(), set()
    for child in _nodes(statement):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            texts.add(child.value)
        attributes: list[str] = []
        while isinstance(child, ast.Attribute):
            attributes.insert(0, child.attr)
            child = child.value  # noqa: PLW2901 - down the chain
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load):
            names.add(".".join([child.id, *attributes]))
    return names, texts


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder of data, which holds neither modules nor a base model."""
    if folder.is_dir() and not (folder / "__init__.py").exists() and not (folder / MARK_OF_A_BASE).exists():
        yield from folder.rglob("*")


def _is_data(file: Path, package: Path) -> bool:
    return file.suffix in DATA_SUFFIXES and file.is_relative_to(package) and file.is_file()


def _drop_texts(tree: ast.AST) -> None:
    """Drop statements that are only a string: docstrings of modules, classes, functions and fields."""
    for node in _statements(tree):
        for name in BODIES:
            if statements := getattr(node, name, None):
                statements[:] = [each for each in statements if not _is_text(each)]


def _is_text(statement: ast.AST) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@cache
def _hash_of_code(node: ast.AST) -> str:
    return _hash(_canonical(node).encode())


def _canonical(node: object) -> str:
    """Return a text of a syntax tree in which an empty or absent field leaves no trace: Python versions add such."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        filled = [f"{name}={_canonical(value)}" for name, value in fields if value is not None and value != []]
        return f"{type(node).__name__}({','.join(filled)})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return repr(node)


def _hash_of_data(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    match file.suffix:
        case ".yaml":
            return _hash(_by_value(yaml.safe_load(text)))
        case ".json":
            return _hash(_by_value(json.loads(text)))
    return _hash("\n".join(line for line in map(str.strip, text.splitlines()) if line).encode())


def _by_value(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
