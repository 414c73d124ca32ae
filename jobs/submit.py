"""Submit a job file from Python, wait for it and look at what came out: ``python jobs/submit.py jobs/demo.yaml``."""

import sys

import dneuro as dn

job = dn.submit(sys.argv[1], cluster="local", overrides=sys.argv[2:])  # goes on though this script ends
job.wait(progress=lambda now: print(now.state, now.found.get("units") or ""), period=5.0)
print(job.result())
print("report:", job.status().found["report"])
