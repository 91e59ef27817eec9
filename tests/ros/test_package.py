"""The ament package and the page about ROS say what the code does."""

import ast
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import fields
from pathlib import Path

from refdiff.ros.parameters import NodeParameters

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ros2" / "refdiff_ros2"
PAGE = (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8")


def test_the_manifest_is_one_of_an_ament_python_package():
    manifest = ElementTree.parse(PACKAGE / "package.xml").getroot()  # noqa: S314 - our own file
    assert (manifest.tag, manifest.get("format")) == ("package", "3")
    assert manifest.findtext("name") == PACKAGE.name
    assert manifest.findtext("export/build_type") == "ament_python"
    assert all(manifest.findtext(each) for each in ("version", "description", "maintainer", "license"))
    needed = {each.text for each in manifest.findall("exec_depend")}
    assert {"rclpy", "sensor_msgs", "std_msgs", "diagnostic_msgs", "launch_ros"} <= needed


def test_everything_that_the_package_installs_is_there():
    setup = ast.parse((PACKAGE / "setup.py").read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(setup) if isinstance(node, ast.Constant)}
    files = {each for each in texts if isinstance(each, str) and re.search(r"\.(xml|py|yaml)$", each)}
    assert len(files) == 4
    assert all((PACKAGE / each).is_file() for each in files)
    assert (PACKAGE / "resource" / PACKAGE.name).is_file()
    assert (PACKAGE / PACKAGE.name / "__init__.py").is_file()
    assert "node = refdiff.ros.__main__:main" in texts
    assert f"script_dir=$base/lib/{PACKAGE.name}" in (PACKAGE / "setup.cfg").read_text(encoding="utf-8")


def test_the_launch_file_sets_parameters_that_the_node_has():
    source = (PACKAGE / "launch" / "refdiff.launch.py").read_text(encoding="utf-8")
    compile(source, "refdiff.launch.py", "exec")
    (given,) = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PARAMETERS"
    )
    assert set(ast.literal_eval(given)) <= {each.name for each in fields(NodeParameters)}


def test_the_parameter_file_sets_parameters_that_the_node_has():
    lines = (PACKAGE / "config" / "refdiff.yaml").read_text(encoding="utf-8").splitlines()
    named = {line.split(":")[0].strip() for line in lines if re.match(r" {4}\w+:", line)}
    assert named
    assert named <= {each.name for each in fields(NodeParameters)}


def test_the_profile_of_fast_dds_has_room_for_an_image():
    profile = ElementTree.parse(PACKAGE / "config" / "fastdds_images.xml").getroot()  # noqa: S314 - our own file
    size = profile.findtext(".//{*}segment_size")
    assert size is not None
    assert int(size) >= 4 * 1920 * 1080 * 3


def test_the_page_lists_every_parameter_with_its_default():
    section = PAGE.partition("## Parameters")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? *\|", section, re.MULTILINE))
    expected = {
        each.name: str(each.default).lower() if isinstance(each.default, bool) else str(each.default)
        for each in fields(NodeParameters)
    }
    assert listed == expected
