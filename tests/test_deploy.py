"""docker-compose.yml and deploy/ enter; all that can be known of them without an engine must hold."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import promql_parser
import pytest
import typer.main
from ruamel.yaml import YAML

from detectors.detector import catalog
from detectors.finding import LEVELS
from streams.cli import app
from streams.cli.notify import receivers
from streams.settings import load
from streams.watch.metrics import COUNTED, LANDER, NOTIFIER, WORKER
from tests.kafka import Broker, _java
from tests.streams.conftest import started

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SCHEMA = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
YAMLS = sorted([ROOT / "docker-compose.yml", *DEPLOY.rglob("*.yml")])
PROMETHEUS = {"up", "process_resident_memory_bytes"}
SECRET = re.compile(r"(?i)(password|secret|token|api_?key)\w*\s*[:=]\s*\S")
VALUES = {
    "step": {"merge", "judge", "land", "notify"},
    "fate": set(COUNTED),
    "outcome": {"taken", "refused", "away"},
    "level": set(LEVELS[1:]),
    "job": {"worker", "land", "notify"},
    "detector": set(catalog()),
}


def read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


def compose() -> dict[str, Any]:
    return dict(read(ROOT / "docker-compose.yml"))


def services() -> dict[str, dict[str, Any]]:
    found = compose()["services"]
    assert len(found) >= 9
    return dict(found)


def test_the_compose_file_is_what_the_specification_says() -> None:
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert list(validator.iter_errors(compose())) == []
    wrong = compose()
    wrong["services"]["land"]["comand"] = "asynchealth land"
    assert list(validator.iter_errors(wrong)) != []


def test_every_image_is_pinned_and_what_it_is_built_of_is_there() -> None:
    for name, service in services().items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
        if built := service.get("build"):
            stages = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / built["dockerfile"]).read_text(), re.MULTILINE)
            assert built["target"] in stages
    copied = [
        source
        for sources in re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
        for source in sources.split()
    ]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied and set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)
    assert f"asynchealth:{re.search(r'version = .(.+).$', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)[1]}" in {  # type: ignore[index]
        s["image"] for s in services().values()
    }


def test_every_volume_is_declared_or_a_file_of_the_repository() -> None:
    declared, used = set(compose()["volumes"]), set()
    for name, service in services().items():
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{name}: {source}"
                assert rest.endswith(":ro"), f"{name} could write to {source}"
            else:
                used.add(source)
    assert used == declared


def test_every_dependency_can_become_true_and_what_must_go_on_is_started_again() -> None:
    every = services()
    seen = 0
    for name, service in every.items():
        for other, wanted in service.get("depends_on", {}).items():
            seen += 1
            condition = wanted["condition"]
            assert condition in ("service_healthy", "service_completed_successfully"), f"{name}: {other}"
            assert condition != "service_healthy" or "healthcheck" in every[other], f"{name}: {other} is never healthy"
        assert service["restart"] == ("on-failure" if name == "topics" else "unless-stopped"), name
    assert seen >= 8


def test_nothing_is_reachable_from_other_machines_and_no_secret_is_written_down() -> None:
    ports = [p for s in services().values() for p in s.get("ports", [])]
    assert ports and all(p.startswith("127.0.0.1:") for p in ports)
    texts = {p.name: p.read_text() for p in (*YAMLS, DEPLOY / "Dockerfile", DEPLOY / "asynchealth.toml")}
    assert {n: found[0] for n, text in texts.items() if (found := SECRET.search(text))} == {}


def test_the_lock_of_jupyter_holds_hashes_no_address_and_the_versions_of_the_other_lock() -> None:
    lock = (DEPLOY / "jupyter.lock").read_text()
    pins = re.findall(r"^\S+==\S+.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL)
    assert pins and "".join(pins) == lock and all("--hash=sha256:" in pin for pin in pins)
    ours, theirs = (
        dict(re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE))
        for text in ((ROOT / "requirements.lock").read_text(), lock)
    )
    both = ours.keys() & theirs.keys()
    assert both and {n: theirs[n] for n in both} == {n: ours[n] for n in both}


# ---- our own commands ----


def accepted(line: str) -> dict[str, Any]:
    """The options of a command as our command line understands them; nothing runs."""
    program, *words = shlex.split(line)
    assert program == "asynchealth"
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"asynchealth has no command {name}"
        command = command.commands[name]
    return dict(command.make_context(command.name, words).params)


def lines() -> Iterator[tuple[str, str]]:
    for name, service in services().items():
        if str(service.get("command", "")).startswith("asynchealth"):
            yield name, service["command"]
    for text in (DEPLOY / "rules.yml").read_text().splitlines():
        if found := re.search(r"next: docker compose exec land (asynchealth .+)", text):
            yield "rules.yml", found[1]


@pytest.mark.parametrize("line", sorted({line for _, line in lines()}))
def test_every_command_line_is_one_that_asynchealth_takes(line: str) -> None:
    assert accepted(line).get("broker", "kafka:9092") == "kafka:9092"


def test_what_is_no_command_line_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        accepted("asynchealth worker --brokre kafka:9092")


def test_the_ports_that_are_asked_are_those_that_answer() -> None:
    prometheus = read(DEPLOY / "prometheus.yml")["scrape_configs"]
    asked = {s["job_name"]: s["dns_sd_configs"][0]["port"] for s in prometheus if "dns_sd_configs" in s}
    static = (s["static_configs"][0]["targets"][0].split(":") for s in prometheus if "static_configs" in s)
    asked |= {name: int(port) for name, port in static}
    every = services()
    known = {n: accepted(every[n]["command"]) for n in ("worker", "land", "notify")}
    assert asked == {n: options["metrics"] for n, options in known.items()}
    for name, options in known.items():
        assert options["metrics_address"] == "0.0.0.0"
        assert f":{options['metrics']}/health" in " ".join(every[name]["healthcheck"]["test"])


def test_our_settings_are_taken() -> None:
    assert load([e.detector for e in catalog().values()], path=DEPLOY / "asynchealth.toml")
    host, _, port = receivers(DEPLOY / "asynchealth.toml").alertmanager.removeprefix("http://").partition(":")
    assert host in services() and port.isdigit()


# ---- what watches ----


def expressions() -> Iterator[tuple[str, str]]:
    for group in read(DEPLOY / "rules.yml")["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((DEPLOY / "grafana/dashboards/asynchealth.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def selectors(node: Any) -> Iterator[Any]:
    """Every metric that an expression reads."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


def test_every_expression_reads_metrics_and_labels_that_we_expose() -> None:
    measures = {m.name: m for m in (*WORKER, *LANDER, *NOTIFIER)}
    read_, seen = set(), 0
    for where, text in expressions():
        seen += 1
        for selector in selectors(promql_parser.parse(text)):
            assert selector.name in measures.keys() | PROMETHEUS, f"{where}: nobody exposes {selector.name}"
            read_.add(selector.name)
            labels = {"job", *(measures[selector.name].labels if selector.name in measures else ())}
            for matcher in selector.matchers.matchers:
                assert matcher.name in labels, f"{where}: {selector.name} has no label {matcher.name}"
                assert set(matcher.value.split("|")) <= VALUES[matcher.name], f"{where}: {matcher.value}"
        for labels_ in re.findall(r"\bby \(([\w, ]+)\)", text):
            known = {label for m in measures.values() if m.name in text for label in m.labels}
            assert set(labels_.split(", ")) <= known, f"{where}: by ({labels_})"
    assert seen >= 20
    never_shown = measures.keys() - read_ - {"asynchealth_slices_total", "asynchealth_windows_total"}
    others = {"asynchealth_landed_rows_total", "asynchealth_notify_windows_waiting"}
    assert never_shown == {"asynchealth_assigned_partitions", *others}


def test_an_expression_is_taken_apart_to_its_last_metric() -> None:
    text = 'topk(5, time() - max by (a) (x{b="c"})) > sum(rate(y[5m])) / (z offset 5m)'
    assert {s.name for s in selectors(promql_parser.parse(text))} == {"x", "y", "z"}


def test_every_rule_says_what_it_means_how_grave_it_is_and_what_to_type() -> None:
    rules = [r for g in read(DEPLOY / "rules.yml")["groups"] for r in g["rules"]]
    assert len({r["alert"] for r in rules}) == len(rules) >= 8
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "warn", "none"), rule["alert"]
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] == "none" or rule["annotations"]["next"].startswith("docker compose ")
    assert [r["alert"] for r in rules if r["labels"]["severity"] == "none"] == ["AsynchealthWatchdog"]


def test_alertmanager_has_a_receiver_for_every_route_and_names_only_rules_that_exist() -> None:
    config = read(DEPLOY / "alertmanager.yml")
    alerts = {r["alert"] for g in read(DEPLOY / "rules.yml")["groups"] for r in g["rules"]}
    receivers = {r["name"] for r in config["receivers"]}
    (watchdog,) = config["route"]["routes"]
    assert {config["route"]["receiver"], watchdog["receiver"]} == receivers
    (matcher,) = watchdog["matchers"]
    pattern = matcher.removeprefix('alertname=~"').removesuffix('"')
    assert [a for a in alerts if re.fullmatch(pattern, a)] == ["AsynchealthWatchdog"]
    (rule,) = config["inhibit_rules"]
    assert rule["source_matchers"] == ['alertname="AsynchealthNoWorker"']
    assert "AsynchealthNoWorker" in alerts
    silenced = re.search(r"\((.+)\)", rule["target_matchers"][0])
    assert silenced and {f"Asynchealth{name}" for name in silenced[1].split("|")} <= alerts


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    (source,) = read(DEPLOY / "grafana/datasource.yml")["datasources"]
    dashboard = json.loads((DEPLOY / "grafana/dashboards/asynchealth.json").read_text())
    assert {p["datasource"]["uid"] for p in dashboard["panels"]} == {source["uid"]}
    (provider,) = read(DEPLOY / "grafana/dashboards.yml")["providers"]
    mounted = [v.split(":")[1] for v in services()["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent.as_posix() == provider["options"]["path"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services()


@pytest.mark.xdist_group("kafka")
def test_kafka_takes_the_settings_of_its_service(tmp_path: Path) -> None:
    """As its image makes them: KAFKA_NODE_ID becomes node.id. Formatting checks them all."""
    environment = services()["kafka"]["environment"] | {"KAFKA_LOG_DIRS": f"{tmp_path}/data"}
    named = {n.removeprefix("KAFKA_").lower().replace("_", "."): v for n, v in environment.items()}
    config = tmp_path / "server.properties"
    config.write_text("".join(f"{n}={v}\n" for n, v in named.items()))
    broker = started(Broker(tmp_path / "other"))
    theirs = {e.partition("=")[0] for e in (tmp_path / "other/server.properties").read_text().split()}
    broker.stop()
    assert len(named.keys() & theirs) >= 10
    cluster = "A" * 22
    done = subprocess.run(
        _java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-800:]


def test_jupyter_has_the_notebooks_and_what_they_need() -> None:
    service = services()["jupyter"]
    assert "./notebooks:/srv/asynchealth/notebooks:ro" in service["volumes"]
    assert f"state:{service['environment']['ASYNCHEALTH_STATE']}:ro" in service["volumes"]
    wanted = {re.split(r"[>=]", line)[0] for line in (DEPLOY / "jupyter.in").read_text().split()}
    locked = set(re.findall(r"^(\S+)==", (DEPLOY / "jupyter.lock").read_text(), re.MULTILINE))
    assert {"jupyterlab", "jupytext", "altair", "vl-convert-python"} <= wanted <= locked
