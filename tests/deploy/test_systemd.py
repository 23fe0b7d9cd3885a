"""The units of examples/systemd, and the commands of docs/running.md, in a machine with systemd."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from statsig_otel._times import SHUTDOWN_MARGIN, SHUTDOWN_TIMEOUT
from tests.deploy.machine import PYTHON, ROOT, Machine, missing, skipped_if_unavailable
from tests.deploy.page import SECTIONS, commands, failures
from tests.waiting import wait_until

UNITS = ROOT / "examples" / "systemd"
SERVICE = UNITS / "statsig-otel.service"
SECRET = "webhook-0123456789abcdef0123456789abcdef"
NEXT_SECRET = "webhook-fedcba9876543210fedcba9876543210"
CONFIGURATION = "/etc/statsig-otel/statsig-otel.yaml /etc/systemd/system/statsig-otel.s*[et]"
CLI = "/opt/statsig-otel/bin/statsig-otel"
METRICS = "http://localhost:9464/metrics"
URL = "http://127.0.0.1:8080/api/v1/data/events/receiver/statsig"

analyzed = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="LOUD: systemd-analyze is missing (Debian: systemd)"
)


@analyzed
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """The program that they name is replaced by one that exists."""
    units = sorted(UNITS.glob("*.s*e*"))
    assert len(units) == 2
    for unit in units:
        text = unit.read_text().replace(CLI, sys.executable)
        (tmp_path / unit.name).write_text(text)
    words = ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in units)]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    ours = [line for line in ran.stderr.splitlines() if "statsig-otel" in line]
    assert ours == []


@analyzed
def test_systemd_rates_the_exposure_below_2() -> None:
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", str(SERVICE)]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"Overall exposure level for statsig-otel.service: [01]\.\d ", ran.stdout)


def test_systemd_waits_until_a_shutdown_has_ended() -> None:
    found = re.search(r"^TimeoutStopSec=(\d+)$", SERVICE.read_text(), re.MULTILINE)
    assert found is not None
    assert int(found[1]) > SHUTDOWN_TIMEOUT + SHUTDOWN_MARGIN


def test_each_command_of_the_page_is_run_by_a_test() -> None:
    counts = {section: len(commands(section)) for section in SECTIONS if commands(section)}
    of_systemd = {"With systemd": 11, "Backup": 2, "Moving to another machine": 2, "Upgrade": 3, "Rolling back": 3}
    assert counts == {**of_systemd, "In a container": 13, "In Kubernetes": 13}


LOAD = """
import hmac, http.client, json, os, sys, time
secret, number = sys.argv[1].encode(), 0
while number < 5_000 and not os.path.exists("/run/enough"):
    number += 1
    metadata = {"type": "Gate", "name": f"gate_{number}", "action": "updated"}
    one = {"eventName": "statsig::config_change", "timestamp": 1739400185198 + number, "metadata": metadata}
    body, stamp = json.dumps({"data": [one]}).encode(), str(time.time_ns() // 1_000_000)
    digest = hmac.new(secret, b"v0:" + stamp.encode() + b":" + body, "sha256").hexdigest()
    headers = {"X-Statsig-Signature": "v0=" + digest, "X-Statsig-Request-Timestamp": stamp}
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
        connection.request("POST", "/api/v1/data/events/receiver/statsig", body, headers)
        print(connection.getresponse().status, flush=True)
        connection.close()
    except OSError as error:
        print(repr(error), flush=True)
    time.sleep(0.01)
"""
"""Posts one change after the other, each over a connection of its own, and prints each answer."""


def send(machine: Machine, *, secret: str = SECRET) -> int:
    """Send one sample; the exit code."""
    script = f"{CLI} send --url {URL} --sample gate"
    return machine.run(script, check=False, variables={"STATSIG_SIGNING_SECRET": secret}).returncode


def waiting(machine: Machine, folder: str = "/var/lib/statsig-otel") -> int:
    """How many records wait, as root is told."""
    shown = machine.run(f"{CLI} queue --directory {folder} --json").stdout
    exporters: list[dict[str, Any]] = json.loads(shown)["exporters"]
    return sum(one["waiting"] for one in exporters)


def property_of(machine: Machine, name: str) -> str:
    return machine.run(f"systemctl show --value --property={name} statsig-otel.service").stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(missing() != "", reason=missing())
def test_the_page_on_running_it_with_systemd(tmp_path: Path) -> None:
    """Each of its commands, in their order, and what they are for."""
    install, set_up, first_secret, rotation, rotation_end, reload, *more = commands("With systemd")
    backend_key, tls, open_port, look, file_exporter = more
    backup, restore = commands("Backup")
    end, bring = commands("Moving to another machine")
    keep, prepare, switch = commands("Upgrade")
    put_back, switch_back, copy_back = commands("Rolling back")
    # Only an installation needs a network, which the running machine does not have.
    made, validate = at_pip(named(prepare, "new"))
    folder = tmp_path / "machine"
    folder.mkdir()
    with skipped_if_unavailable(), Machine(folder) as machine:
        machine.install(f"umask 077\n{named(install, 'first')}umask 077\n{made}")
        with machine.boot():
            run_after_failures(machine, f"umask 077\n{set_up}")
            machine.run(set_up)
            check_without_a_secret(machine)
            check_first_secret(machine, first_secret)
            check_look(machine, look)
            check_reload(machine, reload)
            check_restrictions(machine)
            check_rotation(machine, rotation, rotation_end)
            check_backend_key(machine, backend_key)
            check_tls(machine, tls, open_port)
            check_file_exporter(machine, file_exporter)
            check_restarts_under_load(machine)
            check_watchdog(machine)
            check_backup(machine, backup, restore)
            check_stopped(machine, validate)
            check_moving(machine, end, bring)
            before = check_kept(machine, keep)
            check_upgrade(machine, validate, switch)
            check_put_back(machine, put_back, before)
            check_rolling_back(machine, switch_back, copy_back)


def named(commands: str, name: str) -> str:
    """Commands that give a version's folder this name, instead of the time of day."""
    assert commands.count("$(date +%F-%H%M)") == 1
    return commands.replace("$(date +%F-%H%M)", name)


def at_pip(commands: str) -> tuple[str, str]:
    """Commands up to the installation of the package, and the others. Both begin with the umask and the folder."""
    umask, name, *rest = commands.splitlines()
    (at,) = [number for number, line in enumerate(rest) if "pip install" in line]
    made = "\n".join([umask, name, *rest[: at + 1]])
    return made.removesuffix(" &&"), "\n".join([umask, name, *rest[at + 1 :]])


def answered(commands: str, answer: str) -> str:
    """Commands at a terminal where a person types an answer and presses Enter."""
    assert commands.count("systemd-ask-password") == 1
    typed = f"printf '%s\\n' '{answer}' | script --quiet --return --command 'sh -e /run/block' /dev/null"
    return f"cat > /run/block <<'END'\n{commands}END\n{typed}"


def check_without_a_secret(machine: Machine) -> None:
    assert send(machine) != 0
    verification = '{"data": {"event": "url_verification", "verification_code": "abc123"}}'
    got = machine.run(
        f"{PYTHON}/bin/python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], sys.argv[2].encode())"
        f".read().decode())' {URL} '{verification}'"
    )
    assert json.loads(got.stdout) == {"verification_code": "abc123"}
    assert property_of(machine, "ActiveState") == "active"


def check_first_secret(machine: Machine, commands: str) -> None:
    """Without an answer nothing changes."""
    file = "/etc/statsig-otel/signing-secret"
    before, pid = machine.run(f"cat {file}").stdout, property_of(machine, "MainPID")
    assert machine.run(answered(commands, ""), check=False).returncode != 0
    assert (machine.run(f"cat {file}").stdout, property_of(machine, "MainPID")) == (before, pid)
    machine.run(answered(commands, SECRET))
    assert machine.run(f"cat {file}; stat -c %a:%U {file}").stdout == f"{SECRET}\n600:root\n"
    assert send(machine) == 0
    assert waiting(machine) == 1


def check_reload(machine: Machine, reload: str) -> None:
    """A file with errors is refused, and the service goes on; one without is taken."""
    pid, file = property_of(machine, "MainPID"), "/etc/statsig-otel/statsig-otel.yaml"
    machine.run(f"cp {file} /var/backups/kept.yaml; echo 'nonsense: 1' >> {file}")
    assert machine.run(reload, check=False).returncode != 0
    assert "nonsense" in machine.journal()
    assert send(machine) == 0
    machine.run(f"cp /var/backups/kept.yaml {file}")
    machine.run(reload)
    assert property_of(machine, "StatusText") == "Listening"
    assert property_of(machine, "MainPID") == pid


def check_restrictions(machine: Machine) -> None:
    """What the kernel says of the process: they are in force."""
    pid = property_of(machine, "MainPID")
    status = machine.run(f"cat /proc/{pid}/status").stdout
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    user = machine.run("id -u statsig-otel").stdout.strip()
    assert f"Uid:\t{user}\t{user}\t{user}\t{user}" in status
    inside = f"nsenter --target {pid} --mount"
    tried = machine.run(f"{inside} touch /etc/x /opt/x /usr/x /var/x", check=False).stderr
    assert tried.count("Read-only file system") == 4
    assert machine.run(f"{inside} ls /home /root", check=False).stdout.split() == ["/home:", "/root:"]
    assert "kmsg" not in machine.run(f"{inside} ls /dev").stdout.split()
    assert machine.run(f"cat /proc/{pid}/environ").stdout.count(SECRET) == 0
    listed = machine.run("ls -ld /var/lib/statsig-otel; ls -l /var/lib/statsig-otel").stdout
    assert listed.startswith("drwx------")
    modes = {line.split()[0] for line in listed.splitlines()[2:]}
    assert modes <= {"-rw-------", "srw-------"}, listed


def check_rotation(machine: Machine, rotation: str, rotation_end: str) -> None:
    """A reload is not enough, as the page says. In the end only the new secret counts, also if it ends twice."""
    assert send(machine, secret=NEXT_SECRET) != 0
    pid = property_of(machine, "MainPID")
    assert machine.run(answered(rotation, ""), check=False).returncode != 0
    assert property_of(machine, "MainPID") == pid
    write, restart = rotation.removesuffix("\n").rsplit(" &&\n", 1)
    machine.run(answered(f"{write}\n", NEXT_SECRET))
    machine.run("systemctl reload statsig-otel")
    assert send(machine, secret=NEXT_SECRET) != 0
    machine.run(restart)
    assert send(machine, secret=NEXT_SECRET) == 0
    assert send(machine) == 0
    assert send(machine, secret=NEXT_SECRET) == 0
    assert "verified with secret 2 of 2" in machine.run(f"{CLI} queue --directory /var/lib/statsig-otel").stdout
    for _ in range(2):
        machine.run(rotation_end)
        assert send(machine, secret=NEXT_SECRET) == 0
        assert send(machine) != 0
    modes = machine.run("stat -c %a:%U /etc/statsig-otel/signing-secret /etc/statsig-otel/next-signing-secret").stdout
    assert set(modes.split()) == {"600:root"}
    machine.run(f"echo {SECRET} > /etc/statsig-otel/signing-secret; {restart}")
    assert send(machine) == 0


def check_backend_key(machine: Machine, commands: str) -> None:
    """The service starts with the key in its configuration."""
    machine.run(answered(commands, "k3y"))
    file = "/etc/statsig-otel/statsig-otel.yaml"
    key = "headers: {key: '${file:/run/credentials/statsig-otel.service/backend-key}'}"
    machine.run(f'cat > /run/line <<"END"\n    {key}\nEND\nsed -i "/endpoint: localhost:4317/r /run/line" {file}')
    machine.run("systemctl restart statsig-otel")
    assert "REDACTED" in machine.run(f"{CLI} print-config --config {file} | grep -A1 headers").stdout
    assert send(machine) == 0


def check_tls(machine: Machine, tls: str, open_port: str) -> None:
    """The service answers with the certificate at port 443, and after a restart with a renewed one."""
    kept = ["/etc/statsig-otel/statsig-otel.yaml", "/etc/statsig-otel/before-tls.yaml"]
    (lines,) = re.findall(r"^```yaml\n(    tls:.*?)^```", SECTIONS["With systemd"], re.DOTALL | re.MULTILINE)
    certificates = "/etc/letsencrypt/live/example.com"
    new = (
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost "
        f"-keyout {certificates}/privkey.pem -out {certificates}/fullchain.pem"
    )
    machine.run(f"umask 077; mkdir -p {certificates}; {new}; cp -p {' '.join(kept)}")
    machine.run(tls.replace("YOUR-HOST", "example.com"))
    machine.run(f'cat > /run/line <<"END"\n{lines}END\nsed -i "/^  statsig:/r /run/line" {kept[0]}')
    machine.run(open_port)
    check = (
        f"import ssl, urllib.request as u; c = ssl.create_default_context(cafile='{certificates}/fullchain.pem'); "
        "print(u.urlopen('https://localhost/healthz', context=c).status)"
    )
    assert machine.run(f'{PYTHON}/bin/python3 -c "{check}"').stdout == "200\n"
    machine.run(new)
    assert machine.run(f'{PYTHON}/bin/python3 -c "{check}"', check=False).returncode != 0
    machine.run("systemctl reload statsig-otel")
    assert machine.run(f'{PYTHON}/bin/python3 -c "{check}"', check=False).returncode != 0
    machine.run("systemctl restart statsig-otel")
    assert machine.run(f'{PYTHON}/bin/python3 -c "{check}"').stdout == "200\n"
    machine.run(f"rm /etc/systemd/system/statsig-otel.s*.d/tls.conf; mv {kept[1]} {kept[0]}; systemctl daemon-reload")
    machine.run(open_port)
    assert send(machine) == 0


def check_file_exporter(machine: Machine, commands: str) -> None:
    """It writes where the drop-in lets it write."""
    file, kept = "/etc/statsig-otel/statsig-otel.yaml", "/etc/statsig-otel/before-file.yaml"
    machine.run(commands)
    exporter = "  file: {path: /var/log/statsig-otel/changes.jsonl}"
    machine.run(
        f"cp -p {file} {kept}; sed -i -e 's|^exporters:|&\\n{exporter}|' -e 's/exporters: .otlp_grpc/&, file/' {file}; "
        "systemctl restart statsig-otel"
    )
    assert send(machine) == 0
    wait_until(
        lambda: "sample_gate" in machine.run("cat /var/log/statsig-otel/changes.jsonl", check=False).stdout,
        "the file has the change",
    )
    machine.run(f"mv {kept} {file}; rm /etc/systemd/system/statsig-otel.service.d/file.conf; systemctl daemon-reload")
    machine.run("systemctl restart statsig-otel")
    assert send(machine) == 0


def check_stopped(machine: Machine, validate: str) -> None:
    """While the service is stopped its credentials are gone, and `validate` accepts that."""
    config = "--config /etc/statsig-otel/statsig-otel.yaml"
    machine.run("systemctl stop statsig-otel.socket statsig-otel.service")
    assert machine.run(validate).stdout.startswith("The configuration is valid.\n")
    assert "systemd makes it while the service runs" in machine.run(f"{CLI} validate {config}", check=False).stderr
    told = machine.run(f"{CLI} doctor {config}", check=False).stdout
    assert re.findall(r"^(\S+(?: \S+)*) +failed ", told, re.MULTILINE) == ["exporters::otlp_grpc"], told
    assert len(re.findall(r"^configuration +unknown ", told, re.MULTILINE)) == 3
    assert "of a service that is not running" in machine.run(f"{CLI} queue {config}").stdout
    machine.run("systemctl start statsig-otel.socket statsig-otel.service")


def check_restarts_under_load(machine: Machine) -> None:
    before = waiting(machine)
    words = machine.words(f"{PYTHON}/bin/python3", "-c", LOAD, SECRET)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        try:
            assert load.stdout.readline() == "200\n"
            for _ in range(3):
                machine.run("systemctl restart statsig-otel")
        finally:
            machine.run("touch /run/enough")
        answers = Counter(load.stdout.read().split())
    assert set(answers) == {"200"}
    assert waiting(machine) == before + 1 + answers.total()


def check_watchdog(machine: Machine) -> None:
    """A service that hangs is killed and started again. Its deadline is shortened, so that the test is."""
    machine.run("mkdir -p /run/systemd/system/statsig-otel.service.d")
    machine.run("printf '[Service]\\nWatchdogSec=2\\n' > /run/systemd/system/statsig-otel.service.d/test.conf")
    machine.run("systemctl daemon-reload; systemctl restart statsig-otel")
    pid, stored = property_of(machine, "MainPID"), waiting(machine)
    machine.run(f"kill -STOP {pid}")
    wait_until(lambda: property_of(machine, "MainPID") not in {pid, "0"}, "systemd has started it again", within=60)
    assert "Watchdog timeout" in machine.journal()
    machine.run(
        "rm -r /run/systemd/system/statsig-otel.service.d; systemctl daemon-reload; systemctl restart statsig-otel"
    )
    assert waiting(machine) == stored


def check_backup(machine: Machine, backup: str, restore: str) -> None:
    """Of a running and of a stopped queue. What came after the first is what the second has more."""
    before = waiting(machine)
    machine.run(backup)
    machine.run(backup)
    send(machine)
    assert waiting(machine) == before + 1
    machine.run("systemctl stop statsig-otel.socket statsig-otel.service")
    machine.run(backup.replace("/var/backups/queue.db", "/var/backups/stopped.db"))
    machine.run("systemctl start statsig-otel.socket statsig-otel.service")
    assert send(machine) == 0
    live = waiting(machine)
    run_after_failures(machine, restore)
    assert waiting(machine) == before
    assert live in moved_away(machine)
    assert send(machine) == 0
    owners = machine.run("stat -c %U /var/lib/statsig-otel /var/lib/statsig-otel/*").stdout.split()
    assert set(owners) == {"statsig-otel"}
    machine.run(restore.replace("/var/backups/queue.db", "/var/backups/stopped.db"))
    assert waiting(machine) == before + 1


def run_after_failures(machine: Machine, block: str) -> None:
    """Run a block all the way after each of its commands has failed once. The names that it gives have the second."""
    for broken in failures(block):
        assert machine.run(broken, check=False).returncode != 0
        time.sleep(1)
    machine.run(block)


def moved_away(machine: Machine) -> set[int]:
    """How many records wait in each queue that is kept under another name."""
    files = machine.run("ls /var/lib/statsig-otel.*/queue.db").stdout.split()
    return {waiting(machine, file.removesuffix("/queue.db")) for file in files}


def check_look(machine: Machine, look: str) -> None:
    """No collector is there, which is all that the doctor finds."""
    doctor, sample, queue = look.splitlines()
    told = machine.run(doctor, check=False).stdout
    failed = re.findall(r"^(\S+(?: \S+)*) +failed ", told, re.MULTILINE)
    assert failed == ["exporters::otlp_grpc"], told
    assert re.search(r"^queue state +ok +in use by process \d+$", told, re.MULTILINE)
    before = waiting(machine)
    answer = machine.run(sample).stdout
    assert answer.startswith("200 OK\n")
    assert json.loads(answer.partition("\n")[2])["accepted"] == 1
    assert re.search(rf"^otlp_grpc +\w+ +{before + 1} ", machine.run(queue).stdout, re.MULTILINE)
    ask = f"{PYTHON}/bin/python3 -c 'import urllib.request as u; print(u.urlopen(\"{METRICS}\").read().decode())'"
    assert "statsig_otel_receiver_requests_total" in machine.run(ask).stdout


def check_moving(machine: Machine, end: str, bring: str) -> None:
    """The old machine is a directory here, and its files belong to a user whom the new machine does not have."""
    before = waiting(machine)
    machine.run(end)
    for unit in ("statsig-otel.socket", "statsig-otel.service"):
        assert machine.run(f"systemctl is-active {unit}", check=False).stdout == "inactive\n"
        assert machine.run(f"systemctl is-enabled {unit}", check=False).stdout == "disabled\n"
    machine.run("mkdir /var/old; mv /var/lib/statsig-otel /var/old; chown -R 54321:54321 /var/old/statsig-otel")
    machine.run("systemctl enable --now statsig-otel.socket statsig-otel.service")
    assert waiting(machine) == 0
    assert send(machine) == 0
    far = "ssh OLD-MACHINE tar --directory /var/lib"
    assert far in bring
    machine.run("rm -r /var/lib/statsig-otel.*")
    run_after_failures(machine, bring.replace(far, "tar --directory /var/old"))
    assert waiting(machine) == before
    assert moved_away(machine) >= {1}
    machine.run("test ! -e /var/backups/moved.tar")
    assert send(machine) == 0
    owners = machine.run("stat -c %U /var/lib/statsig-otel /var/lib/statsig-otel/*").stdout.split()
    assert set(owners) == {"statsig-otel"}


def running_version(machine: Machine) -> str:
    """The folder of the running program."""
    return machine.run(f"tr '\\0' ' ' < /proc/{property_of(machine, 'MainPID')}/cmdline").stdout.split("/bin/")[0]


def check_kept(machine: Machine, keep: str) -> str:
    """Once there are copies, those of files that were changed since then do not replace them. What the files had."""
    before = machine.run(f"cat {CONFIGURATION}").stdout
    run_after_failures(machine, keep)
    machine.run(f"for file in {CONFIGURATION}; do echo '# new' >> $file; done")
    assert "Directory not empty" in machine.run(keep, check=False).stderr
    return before


def check_upgrade(machine: Machine, validate: str, switch: str) -> None:
    """It can be tried again until it has switched, and not after that: the version to go back to stays."""
    before = waiting(machine)
    assert running_version(machine) == "/opt/statsig-otel-first"
    assert machine.run(validate).stdout.startswith("The configuration is valid.\n")
    in_another_shell = machine.run(switch, check=False)
    assert "new" in in_another_shell.stderr
    switch = "\n".join([*validate.splitlines()[:2], switch])
    for broken in failures(switch)[:-1]:
        assert machine.run(broken, check=False).returncode != 0
    machine.run("systemctl restart statsig-otel")
    assert running_version(machine) == "/opt/statsig-otel-first"
    machine.run(switch)
    assert running_version(machine) == "/opt/statsig-otel-new"
    assert machine.run(switch, check=False).returncode != 0
    assert machine.run("readlink /opt/statsig-otel-before").stdout == "/opt/statsig-otel-first\n"
    assert waiting(machine) == before
    assert send(machine) == 0


def check_put_back(machine: Machine, put_back: str, before: str) -> None:
    assert machine.run(f"cat {CONFIGURATION}").stdout != before
    run_after_failures(machine, put_back)
    assert machine.run(f"cat {CONFIGURATION}").stdout == before


def check_rolling_back(machine: Machine, switch_back: str, copy_back: str) -> None:
    """First with a queue as before; then with one of a later schema, which the older version refuses to touch."""
    before, database = waiting(machine), "/var/lib/statsig-otel/queue.db"
    machine.run(switch_back)
    assert running_version(machine) == "/opt/statsig-otel-first"
    assert waiting(machine) == before
    machine.run("systemctl stop statsig-otel.socket statsig-otel.service")
    script = f"import sqlite3; sqlite3.connect({database!r}).execute('PRAGMA user_version = 99')"
    machine.run(f'{PYTHON}/bin/python3 -c "{script}"')
    checksum = machine.run(f"sha256sum {database}").stdout
    machine.run("systemctl start --no-block statsig-otel.socket statsig-otel.service")
    said = "has schema version 99, and this version of statsig-otel knows at most"
    wait_until(lambda: said in machine.journal(), said, within=60)
    machine.run("systemctl stop statsig-otel.socket statsig-otel.service")
    assert machine.run(f"sha256sum {database}").stdout == checksum
    run_after_failures(machine, copy_back)
    assert checksum.split()[0] in machine.run("sha256sum /var/lib/statsig-otel.newer-*/queue.db").stdout
    assert send(machine) == 0
    assert waiting(machine) == before  # of these, one came after the copy was made, and one has just come
