"""The ament package: it installs the node's executable, a launch file and a configuration of Fast DDS."""

from setuptools import setup

NAME = "refdiff_ros2"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/refdiff.launch.py"]),
        (f"share/{NAME}/config", ["config/refdiff.yaml", "config/fastdds_images.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    description="Masks of what a phrase names, for every image of a camera",
    license="Apache-2.0",
    entry_points={"console_scripts": ["node = refdiff.ros.__main__:main"]},
)
