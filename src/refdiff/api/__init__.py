"""The verbs as functions; the command line calls these and prints what they return.

    load       a bundle, ready to segment             bundles.py
    inspect    what a bundle is                       bundles.py
    segment    one picture, one phrase                answers.py
    segment_many  phrases on pictures, into a folder  surveying.py
    export     torch modules -> bundle                exporting.py
    calibrate  what the pipeline feeds its graphs     calibrating.py
    audit      what half precision cannot hold        auditing.py
    bisect     which nodes break a graph              bisecting.py
    build      graphs -> TensorRT plans               building.py
    lint       what TensorRT's parser says of them    linting.py
    sensitivity  what eight bits cost each block      precision.py
    check      is a bundle still the reference        checking.py
    profile    where the milliseconds go              profiling.py
    compare_profiles  is one slower than another      profile_records.py
    evaluate   metrics of the miniature               evaluating.py
    doctor     what this machine is, what runs here   doctoring.py
    fetch      checkpoints from the hub               fetching.py
    demo       the built-in bundle on sample scenes   showing.py

Importing this loads numpy and Pillow; torch, ONNX and the back-ends come in when a verb needs them.
"""

from refdiff.api.answers import Answer, check_outputs, save, segment
from refdiff.api.auditing import AuditReport, audit
from refdiff.api.bisecting import BisectReport, bisect
from refdiff.api.building import BUILT_PROFILES, BuildReport, build
from refdiff.api.bundles import Inspection, inspect, load
from refdiff.api.calibrating import CALIBRATED_PROFILES, CalibrationReport, calibrate, open_feeds
from refdiff.api.checking import CHECKED_PROFILES, CheckReport, check
from refdiff.api.doctoring import DoctorReport, doctor
from refdiff.api.evaluating import EvaluationReport, evaluate
from refdiff.api.exporting import export
from refdiff.api.fetching import FetchReport, carry_out, fetch, plan_fetch
from refdiff.api.linting import LintReport, lint
from refdiff.api.models import MODELS, ModelChoice
from refdiff.api.precision import PRECISIONS, sensitivity
from refdiff.api.profile_records import compare_profiles, profile_outputs, save_profile
from refdiff.api.profile_report import ProfileReport
from refdiff.api.profiling import profile
from refdiff.api.showing import DemoReport, demo
from refdiff.api.surveying import Survey, segment_many
from refdiff.engines.trt.options import BuildOptions

__all__ = [
    "BUILT_PROFILES",
    "CALIBRATED_PROFILES",
    "CHECKED_PROFILES",
    "MODELS",
    "PRECISIONS",
    "Answer",
    "AuditReport",
    "BisectReport",
    "BuildOptions",
    "BuildReport",
    "CalibrationReport",
    "CheckReport",
    "DemoReport",
    "DoctorReport",
    "EvaluationReport",
    "FetchReport",
    "Inspection",
    "LintReport",
    "ModelChoice",
    "ProfileReport",
    "Survey",
    "audit",
    "bisect",
    "build",
    "calibrate",
    "carry_out",
    "check",
    "check_outputs",
    "compare_profiles",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "fetch",
    "inspect",
    "lint",
    "load",
    "open_feeds",
    "plan_fetch",
    "profile",
    "profile_outputs",
    "save",
    "save_profile",
    "segment",
    "segment_many",
    "sensitivity",
]
