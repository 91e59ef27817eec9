"""The ament package of refdiff; its code is in `refdiff.ros`."""
