"""refdiff as a ROS 2 node, and on recorded bags."""
