"""Apache Kafka's jars: brought by Maven once into `.kafka/<version>/` of the checkout."""

import contextlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parent
POM = HERE / "kafka" / "pom.xml"
CACHE = HERE.parents[1] / ".kafka"


class KafkaError(Exception):
    """Apache Kafka could not be fetched or did not start; the text ends with what it said last."""


def missing() -> str | None:
    """Say what Apache Kafka lacks on this machine, or None where it can run."""
    if shutil.which("java") is None:
        return "no java found, version 17 or newer is needed"
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < 17:
        return f"Java 17 or newer is needed, not: {said.partition(chr(10))[0]}"
    if shutil.which("mvn") is None and not _jars().is_dir():
        return "no mvn found, Maven is needed to fetch it"
    return None


def _jars() -> Path:
    namespace = {"m": "http://maven.apache.org/POM/4.0.0"}
    version = ET.parse(POM).findtext("m:properties/m:kafka.version", namespaces=namespace)  # noqa: S314 - our own file
    return CACHE / str(version) / "libs"


def fetch() -> Path:
    """Return the folder with Apache Kafka's jars, brought by Maven if they are not there yet.

    Raises KafkaError with Maven's output when that fails.
    """
    jars = _jars()
    if jars.is_dir():
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    # Two test runs may start at once, and either may be interrupted: only a whole folder gets the final name.
    with tempfile.TemporaryDirectory(dir=jars.parent) as partial:
        command = ["mvn", "-B", "-q", "-f", str(POM), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={partial}/libs"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise KafkaError(f"Maven could not fetch Apache Kafka:\n{done.stdout}")
        with contextlib.suppress(FileExistsError, OSError):
            (Path(partial) / "libs").rename(jars)
    if not jars.is_dir():
        raise KafkaError(f"Maven left no jars in {jars}")
    return jars
