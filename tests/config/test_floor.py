"""Floor 1 stands by itself."""

import ast
import subprocess
import sys
from pathlib import Path

import statsig_otel.config as package


def test_imports_nothing_from_the_floors_above() -> None:
    for path in Path(package.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not any("plugin" in name or "exporters" in name for name in names), path.name


def test_the_package_loads_nothing_before_it_is_used() -> None:
    program = (
        "import sys, statsig_otel.config as c; assert not {'pydantic', 'ruamel.yaml'} & set(sys.modules); "
        "[getattr(c, name) for name in dir(c)]; "
        "assert not [n for n in sys.modules if n.startswith(('statsig_otel.plugin', 'statsig_otel.exporters'))]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
