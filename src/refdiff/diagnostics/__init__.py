"""What is on this machine, what is known to go wrong with it, and what runs here.

sources      where facts come from: files, commands, package metadata; the tests put others in their place
facts        what is known of a machine, as plain values
gathering    sources -> facts
host         system, processor, memory
gpu          GPUs, driver, CUDA's libraries; driver_report is the process that asks the driver
jetson       model, JetPack, power mode, clocks
packages     versions, ONNX Runtime's providers, refdiff's extras

and from facts to lines:

findings     one line: ok, warn or fail, what was found, the cure
checks       facts -> lines; package_checks those of Python packages
known_bad    combinations that are known not to work, with date and source
backends     bundle -> what can run it here; trial is the process that tries
"""
