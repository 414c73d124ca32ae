"""Run a job file from Python and look at what came out: ``python jobs/submit.py jobs/demo.yaml``."""

import sys

import dneuro as dn

if __name__ == "__main__":  # the workers import this file too
    result = dn.run(sys.argv[1], cluster="local", overrides=sys.argv[2:])
    print(dn.open(result.store))
    print("report:", result.report)
