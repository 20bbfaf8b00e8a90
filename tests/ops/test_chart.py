"""The chart: what it installs, what it refuses, and that Kubernetes and a security linter take all of it."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import textwrap
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, SecretStr

from producer.config import Config, load_config, source_model
from producer.sources import SOURCES
from tests.ops.chart import (
    BASE,
    CHART,
    ON_DISK,
    SHAPES,
    SHARED,
    STANDBY,
    SWITCHES,
    Document,
    Values,
    distinct,
    documents,
    merged,
    one,
    pod,
    render_all,
    run,
    template,
)

OWN_RESOURCES = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}  # Kubernetes itself knows no schema of them


@pytest.fixture(scope="module")
def rendered(helm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    return render_all(helm, tmp_path_factory.mktemp("parent"))


def test_every_combination_of_switches_renders_what_is_switched_on(rendered: dict[str, list[Document]]) -> None:
    workloads = {"job": "Job", "cronjob": "CronJob"}
    for shape in SHAPES:
        for chosen in itertools.product((False, True), repeat=len(SWITCHES)):
            account, budget, policy, monitor, rule, boards = chosen
            kinds = [document["kind"] for document in rendered[f"{shape}-{''.join(str(int(on)) for on in chosen)}"]]
            expected = ["ConfigMap", "Service", workloads.get(shape, "Deployment")]
            expected += ["ServiceAccount"] * account + ["NetworkPolicy"] * policy + ["ServiceMonitor"] * monitor
            expected += ["PrometheusRule"] * rule + ["ConfigMap"] * boards
            expected += ["PodDisruptionBudget"] * (budget and shape not in (*workloads, "standby"))
            expected += ["PersistentVolumeClaim"] * (shape in ("on-disk", "cronjob"))
            expected += {"keda": ["ScaledObject"], "hpa": ["HorizontalPodAutoscaler"]}.get(shape, [])
            assert sorted(kinds) == sorted(expected), shape


@pytest.mark.parametrize("version", ["1.25", "1.28", "1.31", "1.34", "1.37"])
def test_kubernetes_knows_every_field(rendered: dict[str, list[Document]], version: str) -> None:
    checked = set()
    for document in distinct(rendered):
        if document["kind"] not in OWN_RESOURCES:
            kubernetes_validate.validate(document, version, strict=True)
            checked.add(document["kind"])
    assert {"Deployment", "Job", "CronJob", "NetworkPolicy", "PodDisruptionBudget", "ConfigMap"} <= checked


def test_lint_is_content(helm: str) -> None:
    done = run(helm, "lint", "--strict", str(CHART), values=BASE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


def test_a_security_linter_finds_nothing(trivy: str, rendered: dict[str, list[Document]], tmp_path: Path) -> None:
    """Nothing is left to explain, so that nothing is explained away: a new finding fails here."""
    for shape in (*(f"{shape}-111111" for shape in SHAPES), "everything", "everything-job"):
        (tmp_path / f"{shape}.yaml").write_text(yaml.safe_dump_all(rendered[shape]))
    done = subprocess.run(
        [trivy, "config", "--quiet", "--skip-check-update", "--format", "json", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["Results"]
    assert {result["Target"] for result in results} == {path.name for path in tmp_path.iterdir()}
    assert sum(result["MisconfSummary"]["Successes"] for result in results) > 100
    findings = [
        (result["Target"], found["ID"], found["Message"])
        for result in results
        for found in result.get("Misconfigurations", ())
    ]
    assert findings == []


def loaded(found: list[Document], folder: Path) -> Config:
    """The ConfigMap, as the producer in the pod reads it; the Secret `shop` has a password."""
    text = next(d for d in found if d["kind"] == "ConfigMap")["data"]["producer.yaml"]
    (folder / "shop").mkdir()
    (folder / "shop" / "password").write_text("hunter2\n")
    path = folder / "producer.yaml"
    path.write_text(text.replace("/run/secrets", str(folder)))
    return load_config(path, {})


def test_the_producer_takes_the_configuration_that_is_mounted(helm: str, tmp_path: Path) -> None:
    config = loaded(template(helm), tmp_path)
    assert (config.http.host, config.http.port) == ("0.0.0.0", 9464)
    assert config.streams[0].page_size == 1_000_000
    assert config.sources["shop"].url.get_secret_value() == "postgresql://reader:hunter2@pg/shop"


@pytest.mark.parametrize("values", [SHARED, STANDBY, ON_DISK], ids=["shared", "standby", "on-disk"])
def test_the_producer_takes_what_the_chart_takes(helm: str, tmp_path: Path, values: Values) -> None:
    assert loaded(template(helm, values), tmp_path).streams


def test_another_port_is_the_same_everywhere(helm: str, tmp_path: Path) -> None:
    found = template(helm, {"config": {"http": {"port": 8080}}})
    assert loaded(found, tmp_path).http.port == 8080
    assert one(found, "Service")["spec"]["ports"][0]["port"] == 8080
    assert pod(found)["spec"]["containers"][0]["ports"][0]["containerPort"] == 8080


def test_one_reader_at_a_time_unless_pods_share_the_splits(helm: str) -> None:
    assert one(template(helm), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    shared = one(template(helm, SHARED), "Deployment")["spec"]
    assert (shared["strategy"]["type"], shared["replicas"]) == ("RollingUpdate", 3)
    standby = one(template(helm, STANDBY), "Deployment")["spec"]
    assert (standby["strategy"], standby["replicas"]) == ({"type": "Recreate"}, 2)
    assert one(template(helm, {"workload": "cronjob"}), "CronJob")["spec"]["concurrencyPolicy"] == "Forbid"


def test_an_autoscaler_decides_alone_how_many_pods_there_are(helm: str) -> None:
    for kind in ("keda", "hpa"):
        assert "replicas" not in one(template(helm, SHAPES[kind]), "Deployment")["spec"]
    (trigger,) = one(template(helm, SHAPES["keda"]), "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["query"].startswith(
        "sum(producer_backfill_rows_remaining{"
    )  # each pod tells its own part


def test_dumps_stop_when_caught_up_and_a_deployment_does_not(helm: str) -> None:
    for kind in ("job", "cronjob"):
        assert "--once" in pod(template(helm, {"workload": kind}))["spec"]["containers"][0]["args"]
    assert "--once" not in pod(template(helm))["spec"]["containers"][0]["args"]


def test_another_configuration_is_another_job_and_new_pods(helm: str) -> None:
    def job(*layers: Values) -> str:
        return str(one(template(helm, {"workload": "job"}, *layers), "Job")["metadata"]["name"])

    assert job() == job()
    assert job() != job({"config": {"streams": [{"source": "shop", "table": "public.orders"}]}})
    annotations = [
        pod(template(helm, layer))["metadata"]["annotations"]
        for layer in ({}, {"config": {"app": "other"}}, {"secretsRevision": "2"})
    ]
    assert annotations[0] != annotations[1]
    assert annotations[0] != annotations[2]


def test_a_pod_gets_longer_to_end_than_it_takes_to_drain(helm: str) -> None:
    spec = pod(template(helm))["spec"]
    assert spec["terminationGracePeriodSeconds"] > Config.model_fields["shutdown_timeout_s"].default
    longer = {"config": {"shutdown_timeout_s": 60}, "terminationGracePeriodSeconds": 75, "preStopSeconds": 5}
    assert pod(template(helm, longer))["spec"]["containers"][0]["lifecycle"]["preStop"]


def scrapers(helm: str, *layers: Values) -> list[Any]:
    """Who the NetworkPolicy lets in, rule by rule."""
    policy = one(template(helm, *layers), "NetworkPolicy")["spec"]
    return [rule["from"] for rule in policy["ingress"] or []]


def test_prometheus_is_let_in_from_its_namespace_where_it_is_told_to_scrape(helm: str) -> None:
    def namespace(name: str) -> dict[str, Any]:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    on: Values = {"serviceMonitor": {"enabled": True}}
    asked = one(template(helm, SHAPES["keda"]), "ScaledObject")["spec"]["triggers"][0]["metadata"]["serverAddress"]
    assert asked.startswith("http://prometheus-operated.monitoring:")
    assert scrapers(helm, on) == [[{"podSelector": {}}, namespace("monitoring")]]
    assert scrapers(helm, on, {"networkPolicy": {"from": [], "prometheusNamespace": "m"}}) == [[namespace("m")]]
    for closed in ({}, merged(on, {"networkPolicy": {"prometheusNamespace": ""}})):
        assert scrapers(helm, closed) == [[{"podSelector": {}}]]
    # As values of a release before this one, taken over. A rule without peers would let everybody in.
    assert scrapers(helm, on, {"networkPolicy": {"from": None, "prometheusNamespace": None}}) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "let in from namespace monitoring; if yours is in another one, set networkPolicy.prometheusNamespace"),
        ({"networkPolicy": {"prometheusNamespace": ""}}, "let in only where networkPolicy.from says so"),
        ({"networkPolicy": {"enabled": False}}, None),
        ({"serviceMonitor": {"enabled": False}}, None),
    ],
)
def test_the_notes_tell_from_where_prometheus_is_let_in(helm: str, values: Values, said: str | None) -> None:
    layers = merged(BASE, {"serviceMonitor": {"enabled": True}}, values)
    done = run(helm, "install", "shop", str(CHART), "--dry-run=client", values=layers)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert said in notes if said else "Prometheus" not in notes


def test_each_secret_is_a_volume_of_a_name_that_is_valid_and_its_own(helm: str) -> None:
    secrets = ["kafka.tls", "kafka-tls", "a" * 42 + "-shop", "a" * 42 + ".password"]
    spec = pod(template(helm, {"secretFiles": secrets}))["spec"]
    names = {volume["name"]: volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
    assert list(names.values()) == secrets
    assert all(re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert all(mounts[f"/run/secrets/{secret}"] == name for name, secret in names.items())


@pytest.mark.parametrize("release", ["my.shop", "a" * 48 + "--b", "a" * 49 + ".b"])
@pytest.mark.parametrize("workload", ["deployment", "job", "cronjob"])
def test_whatever_the_release_is_called_its_objects_have_valid_names(helm: str, release: str, workload: str) -> None:
    longest = {"Service": 63, "CronJob": 52, "Job": 63}
    for document in template(helm, {"workload": workload}, release=release):
        name = document["metadata"]["name"]
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= longest.get(document["kind"], 253)


def test_no_pod_has_a_token_or_a_writable_root(rendered: dict[str, list[Document]]) -> None:
    for found in rendered.values():
        spec = pod(found)["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsUser"] == 10001
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


ALERTS: list[dict[str, Any]] = yaml.safe_load((CHART.parent / "dashboards/alerts.yaml").read_text())["groups"]
WATCHED: Values = {"prometheusRule": {"enabled": True}}


def test_the_alerts_are_those_of_the_file_with_reachable_runbooks(helm: str) -> None:
    url = "https://docs.example/runbooks.html"
    found = one(template(helm, {"prometheusRule": {"enabled": True, "runbookUrl": url}}), "PrometheusRule")
    groups = json.loads(json.dumps(ALERTS).replace("docs/runbooks.md#", f"{url}#"))
    for group in (*groups, *found["spec"]["groups"]):
        for rule in group["rules"]:
            rule.pop("expr")
    assert found["spec"]["groups"] == groups


@pytest.mark.parametrize("workload", ["job", "cronjob"])
def test_nobody_is_woken_between_two_runs_of_a_job(helm: str, workload: str) -> None:
    (group,) = one(template(helm, WATCHED, {"workload": workload}), "PrometheusRule")["spec"]["groups"]
    alerts = [rule["alert"] for rule in ALERTS[0]["rules"]]
    assert [rule["alert"] for rule in group["rules"]] == [name for name in alerts if name != "ProducerAbsent"]


def of_release(case: dict[str, Any], namespace: str, service: str) -> dict[str, Any]:
    """A case of promtool with its series, and the alerts on them, as the Prometheus operator labels a release's."""
    own = {"namespace": namespace, "service": service}
    labels = ", ".join(f'{label}="{value}"' for label, value in own.items())
    case = deepcopy(case)
    for series in case["input_series"]:
        metric, _, others = series["series"].partition("{")
        series["series"] = f"{metric}{{{labels}, {others}" if others else f"{metric}{{{labels}}}"
    for check in case["alert_rule_test"]:
        for alert in check["exp_alerts"]:
            alert["exp_labels"] |= own
    return case


def test_alerts_of_a_release_fire_on_it_and_not_on_another(
    helm: str, prometheus: tuple[str, str], tmp_path: Path
) -> None:
    """Each case beside releases of which all cases are true: they neither add to the alerts nor hide one."""
    name = "shop-streaming-producer"
    plain = yaml.safe_load(Path(__file__).with_name("alerts_test.yaml").read_text())["tests"]
    cases = [of_release(case, "data", name) for case in plain]
    others = {
        series["series"]: series
        for case in plain
        for release in (("data", "other"), ("elsewhere", name))
        for series in of_release(case, *release)["input_series"]
    }
    for case in cases:
        case["input_series"] += others.values()
    found = one(template(helm, WATCHED), "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(found["spec"]))
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [prometheus[1], "test", "rules", "tests.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_are_those_of_the_files(helm: str) -> None:
    found = template(helm, {"dashboards": {"enabled": True}})
    (boards,) = (d for d in found if d["metadata"]["name"].endswith("-dashboards"))
    files = sorted((CHART.parent / "dashboards").glob("*.json"))
    assert boards["data"] == {path.name: path.read_text() for path in files}


REFUSED: list[tuple[Values, str]] = [
    ({"replica": 2}, "replica"),
    ({"workload": "daemonset"}, "workload"),
    ({"replicas": "two"}, "replicas"),
    ({"image": {"digest": "sha256:12"}}, "digest"),
    ({"secretEnv": [{"name": "A", "secret": "s"}]}, "key"),
    ({"secretFiles": ["Not_A_Name"]}, "secretFiles"),
    ({"autoscaling": {"type": "vpa"}}, "autoscaling"),
    ({"serviceMonitor": {"interval": "often"}}, "interval"),
    ({"secretFiles": ["shop", "shop"]}, "secretFiles"),
    ({"fullnameOverride": "1-shop"}, "set fullnameOverride"),
    ({"nameOverride": "Shop_1"}, "set fullnameOverride"),
    ({"config": {"streams": []}}, "config needs sources and streams"),
    ({"replicas": 2}, "coordination: kafka"),
    (merged(STANDBY, {"autoscaling": {"type": "hpa"}}), "stand by do no work"),
    ({"autoscaling": {"type": "keda"}}, "coordination: kafka"),
    (merged(SHARED, {"workload": "job"}), "for workload deployment"),
    (merged(SHARED, ON_DISK), "cannot share a volume"),
    ({"config": {"checkpoints": {"type": "file"}}}, "lost with the pod"),
    (
        {"config": {"checkpoints": {"type": "file", "path": "state"}}, "persistence": {"enabled": True}},
        "not on the volume",
    ),
    ({"terminationGracePeriodSeconds": 34}, "set at least 35"),
    ({"preStopSeconds": 20}, "set at least 55"),
    ({"config": {"shutdown_timeout_s": 60}}, "set at least 70"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_work_is_refused_with_the_way_out(helm: str, values: Values, said: str) -> None:
    done = run(helm, "template", "shop", str(CHART), values=merged(BASE, values))
    assert done.returncode != 0
    assert said in done.stderr
    assert "hunter2" not in done.stderr


OPEN_SECRETS: list[tuple[str, Values]] = [
    ("kafka.sasl_password", {"kafka": {"sasl_password": "hunter2"}}),
    ("kafka.sasl_password", {"kafka": {"sasl_password": 70812}}),
    ("kafka.sasl_password", {"kafka": {"sasl_password": "hunter$2"}}),
    ("kafka.sasl_password", {"kafka": {"sasl_password": "$${hunter2}"}}),
    ("kafka.sasl_password", {"kafka": {"sasl_password": "hunter2${file:/run/secrets/kafka/rest}"}}),
    ("kafka.ssl_password", {"kafka": {"ssl_password": "${SSL_PASSWORD:-hunter2}"}}),
    ("lineage.api_key", {"lineage": {"url": "http://marquez/api/v1/lineage", "api_key": "hunter2secret"}}),
    ("http.token", {"http": {"token": "hunter2hunter2hunter2"}}),
    ("sources.chat.session", {"sources": {"chat": {"type": "telegram", "session": "1ApWapzM"}}}),
    ("sources.chat.api_hash", {"sources": {"chat": {"type": "telegram", "api_hash": "0123abcd"}}}),
    (
        "streams[0].transforms[0].salt",
        {"streams": [{"source": "shop", "table": "t", "transforms": [{"mask": ["name"], "salt": "hunter2hunter2"}]}]},
    ),
]
OPEN_URLS: dict[str, str] = {
    "password": "postgresql://reader:hunter2@pg/shop",
    "no user": "redis://:hunter2@redis/0",
    "user from a secret": "postgresql://${file:/run/secrets/shop/user}:hunter2@pg/shop",
    "dollar": "postgresql://reader:hunter$2@pg/shop",
    "escaped dollar": "postgresql://reader:$${hunter2}@pg/shop",
    "default": "postgresql://reader:${PASSWORD:-hunter2}@pg/shop",
    "slash": "postgresql://reader:hunter/2@pg/shop",
    "beside a reference": "postgresql://reader:${PASSWORD}hunter2@pg/shop",
    "query": "postgresql://pg/shop?user=reader&password=hunter2",
    "query, first": "postgresql://pg/shop?password=hunter2&user=reader",
    "query, default": "postgresql://pg/shop?password=${PASSWORD:-hunter2}",
    "query, sslpassword": "postgresql://reader:${PASSWORD}@pg/shop?sslkey=/k&sslpassword=hunter2",
    "query, passwd": "mysql://db/shop?PASSWD=hunter2",
    "query, pwd": "mysql://db/shop?pwd=hunter2",
    "query, secret": "https://host/?client_secret=hunter2",
    "query, token": "https://host/?access_token=hunter2",
    "query, api_key": "https://host/?api_key=hunter2",
}
CLOSED: list[Values] = [
    {"kafka": {"sasl_password": "${file:/run/secrets/kafka/password}", "sasl_token_file": "/run/secrets/kafka/token"}},
    {"kafka": {"sasl_password": "${KAFKA_PASSWORD}", "ssl_password": None}},
    {"kafka": {"sasl_password": "${KAFKA_PASSWORD:-}", "ssl_password": ""}},
    {
        "sources": {
            "shop": {"url": "postgresql://${USER:-reader}:${file:/run/secrets/shop/password}@${HOST:-pg}:5432/s"}
        }
    },
    {"sources": {"shop": {"url": "${file:/run/secrets/shop/url}"}}},
    {"sources": {"shop": {"url": "postgresql://reader@pg:5432,pg2:5432/shop?sslmode=verify-full"}}},
    {"sources": {"shop": {"url": "postgresql://pg/shop?user=reader&password=${file:/run/secrets/shop/password}&a=b"}}},
    {"sources": {"shop": {"columns": {"users": {"password": "string", "token": "string"}}}}},
    {
        "streams": [
            {
                "source": "shop",
                "table": "users",
                "where": "token = 'a' AND salt > :least",
                "exclude": ["password"],
                "transforms": [
                    {"rename": {"password": "hash"}},
                    {"cast": {"token": "long"}},
                    {"constant": {"session": "none"}},
                    {"mask": ["name"], "salt": "${SALT}"},
                ],
            }
        ]
    },
]


@pytest.mark.parametrize(("place", "config"), OPEN_SECRETS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_secret_in_the_open_is_refused(helm: str, place: str, config: Values) -> None:
    done = run(helm, "template", "shop", str(CHART), values=merged(BASE, {"config": config}))
    assert f"config.{place} has a secret in the open: put it into a Secret" in done.stderr
    assert "hunter" not in done.stderr


@pytest.mark.parametrize("url", OPEN_URLS.values(), ids=OPEN_URLS)
def test_a_url_with_a_password_in_the_open_is_refused(helm: str, url: str) -> None:
    done = run(
        helm, "template", "shop", str(CHART), values=merged(BASE, {"config": {"sources": {"shop": {"url": url}}}})
    )
    assert "config.sources.shop.url is a URL with its password in the open: put it into a Secret" in done.stderr
    assert "hunter" not in done.stderr


@pytest.mark.parametrize("config", CLOSED)
def test_references_and_columns_are_no_secrets(helm: str, config: Values) -> None:
    assert template(helm, {"config": config})


def secret_keys(model: type[BaseModel]) -> Iterator[str]:
    """The keys of all SecretStr in a model and in those within it."""
    within: list[Any] = [(name, field.annotation) for name, field in model.model_fields.items()]
    for name, kind in within:
        if kind is SecretStr:
            yield name
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from secret_keys(kind)
        within += [(name, argument) for argument in get_args(kind)]


def test_every_key_that_is_a_secret_to_the_producer_is_one_to_the_chart() -> None:
    """A new SecretStr is refused in the open too; what is a URL is looked at as one."""
    text = (CHART / "templates/_config.tpl").read_text()
    found = re.search(r"^\(\?i:(.+)\)$", text, re.MULTILINE)
    assert found
    models: list[type[BaseModel]] = [Config, *(source_model(kind) for kind in SOURCES)]
    keys = {name for model in models for name in secret_keys(model)}
    assert {"sasl_password", "api_key", "session", "salt", "token"} <= keys
    assert {key for key in keys if not re.search(f"({found[1]})$", key)} == {"url"}


def test_every_value_has_a_schema_that_takes_no_unknown_key() -> None:
    def check(value: Any, schema: dict[str, Any], at: str) -> None:
        if "properties" in schema:
            assert schema["additionalProperties"] is False, at
            assert set(value) == set(schema["properties"]), at
            for name, inner in value.items():
                check(inner, schema["properties"][name], f"{at}.{name}")
        else:
            assert schema["description"], at

    schema = json.loads((CHART / "values.schema.json").read_text())
    check(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "values")


def test_what_the_readme_installs_is_the_image_that_it_builds_and_pushes(helm: str, tmp_path: Path) -> None:
    install = (CHART / "README.md").read_text().partition("## Install")[2].partition("\n## ")[0]
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", install, re.MULTILINE)]
    build = next(block for block in blocks if " build " in block)
    values = next(yaml.safe_load(block) for block in blocks if "config:" in block)
    done = run(helm, "template", "shop", str(CHART), "--namespace", "data", values=values)
    found = documents(done.stdout)
    assert loaded(found, tmp_path).app == "shop-export"
    image = pod(found)["spec"]["containers"][0]["image"]
    assert build == f"podman build -t {image} .\npodman push {image}\n"
    assert blocks.index(build) < next(i for i, block in enumerate(blocks) if block.startswith("helm upgrade --install"))


def test_values_and_readme_are_current() -> None:
    from helm import generate

    for path, text in generate.generated().items():
        assert path.read_text("utf-8") == text, f"python helm/generate.py writes {path.name} anew"


RELEASES = sorted(Path(__file__).parent.joinpath("releases").iterdir())


def immutable(found: list[Document]) -> dict[str, Any]:
    """What Kubernetes does not let an upgrade change, by kind and name."""
    kept: dict[str, Any] = {}
    for document in found:
        name = f"{document['kind']} {document['metadata']['name']}"
        match document["kind"]:
            case "Deployment":
                kept[name] = document["spec"]["selector"]
            case "PersistentVolumeClaim":
                kept[name] = {key: document["spec"][key] for key in ("accessModes", "storageClassName")}
            case "Service":
                kept[name] = document["spec"]["type"]
    return kept


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_values_of_a_release_still_work_and_can_be_upgraded_in_place(helm: str, release: Path) -> None:
    done = run(
        helm, "template", "shop", str(CHART), *("--namespace", "data"), *("--values", str(release / "values.yaml")),
        *("--values", str(release / "operator.yaml")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert immutable(documents(done.stdout)) == yaml.safe_load((release / "immutable.yaml").read_text())
