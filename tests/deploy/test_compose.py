"""docker-compose.yml: guarded, seen from this machine only, and its parts name one another rightly."""

import re
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.image import would_start
from tests.deploy.promql import DASHBOARDS, ROOT, promtool
from tests.support.attacks import Attack

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_no_rights_and_no_public_port(name: str, attack: Attack) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    attack("image", "with Compose, more rights, or writing to the container's disk", "none of them is given")
    attack("machine", "reaching what Compose starts from another machine", "it listens on this machine only")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].partition(":")
    assert tag.count(".") == 2


def test_everything_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            # Models are made by training, certificates by make; compose says so if they are missing.
            source = volume.split(":")[0] if isinstance(volume, str) else "."
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source


def test_the_image_has_no_torch_and_no_root(attack: Attack) -> None:
    _, final = (ROOT / SERVICES["recurra"]["build"]["dockerfile"]).read_text().rsplit("FROM ", 1)
    assert "USER 10001:10001" in final
    needed = [
        requirement
        for requirement in requires("recurra") or ()
        if not re.search(r"extra == .(training|dev)", requirement)
    ]
    assert any(requirement.startswith("onnxruntime") for requirement in needed)
    assert not any(requirement.startswith("torch") for requirement in needed)
    attack("image", "being root in its container", "its user is another")


def test_prometheus_scrapes_the_server() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    servers, envoy = config["scrape_configs"]
    assert servers["static_configs"] == [{"targets": ["recurra:9464"]}]
    assert "127.0.0.1:9464:9464" in SERVICES["recurra"]["ports"]
    for scrape, name in ((servers, "recurra-servers"), (envoy, "envoy")):
        assert [found["names"] for found in scrape["dns_sd_configs"]] == [[name]]
        assert SERVICES[name]["profiles"] == ["cluster"]


def test_the_servers_of_the_cluster_are_found_and_find_their_store() -> None:
    assert "address: recurra-servers, port_value: 50051 " in (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    assert SERVICES["recurra-servers"]["environment"]["RECURRA_STORE"] == "valkey://valkey:6379"
    assert SERVICES["valkey"]["profiles"] == ["cluster"]


def test_nobody_but_the_servers_can_connect_to_their_store(attack: Attack) -> None:
    networks = {name: service.get("networks", ["default"]) for name, service in SERVICES.items()}
    assert networks["valkey"] == ["store"]
    assert {name for name, of in networks.items() if "store" in of} == {"valkey", "recurra-servers"}
    assert COMPOSE["networks"] == {"store": {"internal": True}}
    assert "ports" not in SERVICES["valkey"]
    attack("store", "connecting with Compose from containers that are no servers", "they are not on its network")


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    config = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    (rules,) = yaml.safe_load(config.read_text())["rule_files"]
    mounted = dict(volume.split(":")[:2][::-1] for volume in SERVICES["prometheus"]["volumes"])
    here = tmp_path / "prometheus.yml"
    here.write_text(config.read_text().replace(rules, str(ROOT / mounted[rules])))
    promtool("check", "config", str(here))


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "recurra.yml").read_text())["providers"]
    grafana = SERVICES["grafana"]

    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in SERVICES
    folder = provider["options"]["path"]
    assert f"./{DASHBOARDS.relative_to(ROOT)}:{folder}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DASHBOARDS / home.removeprefix(f"{folder}/")).is_file()


@pytest.mark.parametrize("name", ["recurra", "recurra-servers"])
def test_a_server_starts_with_what_it_is_told(name: str, tmp_path: Path) -> None:
    assert would_start(SERVICES[name]["environment"], tmp_path)
