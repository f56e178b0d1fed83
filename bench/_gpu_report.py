"""What gpu.sh cannot say in shell: whether this machine will do, and one file of all that was found.

    python bench/_gpu_report.py check              prints the GPU's capability (9.0); exits with 1 and says what is missing
    python bench/_gpu_report.py report LOGS OUT    writes OUT/NAME-OF-THE-GPU.json, prints the table; exits with 1 if a stage failed
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from _table import table

from fastnas.files import write_atomic

NEEDED = ["torch", "torchvision", "setuptools", "pybind11", "pytest"]
# What is left out where a package is missing.
WISHED = {
    "pydantic": "no training step is timed",
    "hypothesis": "the test files that import it cannot be read",
    "triton": "no torch.compile as a peer",
    "timm": "no StdConv2d as a peer",
    "effdet": "no BiFPN of effdet as a peer",
}


def check() -> int:
    missing = [f"no package {name} in {sys.executable}" for name in NEEDED if importlib.util.find_spec(name) is None]
    if sys.version_info < (3, 11):  # noqa: UP036  (gpu.sh takes whatever Python the machine has)
        missing.append(f"Python {sys.version.split()[0]} is too old, 3.11 is needed: set PYTHON")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not (Path(home, "bin", "nvcc").is_file() if home else shutil.which("nvcc")):
        missing.append("no nvcc: set CUDA_HOME to a CUDA toolkit or put its bin on the PATH")
    if not shutil.which(os.environ.get("CXX", "g++").split()[0]):
        missing.append("no C++ compiler: install g++ or set CXX")
    capability = None
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.version.cuda is None:
            missing.append(f"torch {torch.__version__} is a build without CUDA")
        elif not torch.cuda.is_available():
            missing.append(f"no GPU: torch {torch.__version__} for CUDA {torch.version.cuda} finds none")
        else:
            capability = "{}.{}".format(*torch.cuda.get_device_capability())
    for line in missing:
        print(f"gpu.sh: {line}", file=sys.stderr)
    for name, consequence in WISHED.items():
        if importlib.util.find_spec(name) is None:
            print(f"gpu.sh: note: no package {name} (a folder in PYTHONPATH will do): {consequence}", file=sys.stderr)
    if missing:
        return 1
    print(capability)
    return 0


def report(logs: Path, out: Path) -> int:
    """Everything in `logs` into one file; a failed stage, finding or test makes the result 1."""
    stages = read_stages(logs / "stages.tsv")
    document: dict[str, Any] = {"stages": stages}
    if (logs / "tests.xml").is_file():
        document["tests"] = read_tests(logs / "tests.xml")
    document["sanitizer"] = {}
    for tool in ("memcheck", "racecheck", "initcheck"):
        stage = next((stage for stage in stages if stage["name"] == f"sanitizer-{tool}"), None)
        if stage is not None:
            found = document["sanitizer"][tool] = read_sanitizer(logs / f"{tool}.txt")
            _judge(stage, found)
    parts = [json.loads(path.read_text()) for path in sorted((logs / "rows").glob("*.json"))]
    for part in parts:
        stage = next((stage for stage in stages if stage["name"] == f"bench_{part['name']}"), None)
        if stage is not None and not part["complete"]:
            stage["remark"] += f"; kept the {len(part['rows'])} rows that were done"
    for key in ("date", "commit", "machine", "versions", "operators"):
        document[key] = parts[0][key] if parts else None
    document["unit"] = "ms"
    document["copy"] = {part["name"]: part["copy"] for part in parts}
    document["problems"] = [f"{part['name']}: {problem}" for part in parts for problem in part["problems"]]
    document["rows"] = [{"benchmark": part["name"], **row} for part in parts for row in part["rows"]]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{_device_name(document)}.json"
    write_atomic(path, json.dumps(document, indent=1) + "\n")
    print(f"\n{len(document['rows'])} rows, written to {os.path.relpath(path)}")
    print(table(document["rows"]))
    for problem in document["problems"]:
        print(f"PROBLEM: {problem}")
    return _print_stages(stages, document)


def _device_name(document: dict[str, Any]) -> str:
    if document["machine"]:
        name = document["machine"]["gpu"]["name"]
    else:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        name = done.stdout.splitlines()[0] if done and done.returncode == 0 and done.stdout else "no name"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _print_stages(stages: list[dict[str, Any]], document: dict[str, Any]) -> int:
    print()
    for stage in stages:
        print(f"{stage['name']:24s} {stage['status']:8s} {stage['seconds']:4d} s  {stage['remark']}")
    if "tests" in document:
        print("CUDA tests: " + ", ".join(f"{count} {name}" for name, count in document["tests"].items() if name != "failures"))
    failed = [stage["name"] for stage in stages if stage["status"] == "FAILED"]
    print("failed: " + ", ".join(failed) if failed else "every stage that could run went well")
    return 1 if failed else 0


def read_stages(path: Path) -> list[dict[str, Any]]:
    stages = []
    for line in path.read_text().splitlines():
        name, status, seconds, remark = line.split("\t")
        stages.append({"name": name, "status": status, "seconds": int(seconds), "remark": remark})
    return stages


def read_tests(path: Path) -> dict[str, Any]:
    """Counts of pytest's XML report, and the names of what failed."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))

    def names(*tags: str) -> list[str]:
        return [f"{case.get('classname')}::{case.get('name')}" for case in cases if any(case.find(tag) is not None for tag in tags)]

    failures, skipped = names("failure", "error"), names("skipped")
    passed = len(cases) - len(failures) - len(skipped)
    return {"passed": passed, "failed": len(failures), "skipped": len(skipped), "failures": failures}


def read_sanitizer(path: Path) -> dict[str, Any]:
    """compute-sanitizer's log: its findings in our kernels, the number of others (torch's own), its summary line.

    A finding is a paragraph; its first three lines name the kernel, the later ones the host's stack, where we always are.
    """
    text = path.read_text(errors="replace") if path.is_file() else ""
    ours, others, summary = [], 0, None
    paragraphs = re.split(r"^=+\s*$", text, flags=re.MULTILINE)
    for paragraph in paragraphs:
        lines = [line.lstrip("= ").rstrip() for line in paragraph.splitlines() if line.startswith("=")]
        for line in lines:
            if "SUMMARY:" in line:
                summary = line
        lines = [line for line in lines if "SUMMARY:" not in line and line != "COMPUTE-SANITIZER"]
        if not lines or not any(re.search(r"\bat\b", line) for line in lines[:3]):
            continue
        if any("fastnas" in line for line in lines[:3]):
            ours.append(" | ".join(lines[:3]))
        else:
            others += 1
    refused = next((line.lstrip("= ").strip() for line in text.splitlines() if "Device not supported" in line), None)
    return {"findings": len(ours), "first": ours[:5], "in_other_kernels": others, "summary": summary, "refused": refused}


def _judge(stage: dict[str, Any], found: dict[str, Any]) -> None:
    """A tool that cannot work here is skipped; a finding in our kernels or a log without an end is a failure."""
    if found["refused"]:
        stage |= {"status": "skipped", "remark": f"the tool does not work on this machine: {found['refused']}"}
    elif found["findings"]:
        stage |= {"status": "FAILED", "remark": f"{found['findings']} findings, first: {found['first'][0]}"}
    elif found["summary"] is None and stage["status"] == "ok":
        stage |= {"status": "FAILED", "remark": "the log has no summary"}
    elif stage["status"] == "ok":
        stage["remark"] = f"{found['summary']}; {found['in_other_kernels']} in torch's kernels"


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        sys.exit(check())
    if len(sys.argv) == 4 and sys.argv[1] == "report":
        sys.exit(report(Path(sys.argv[2]), Path(sys.argv[3])))
    sys.exit(__doc__)
