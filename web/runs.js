// The runs that the page knows of, as the server's messages (nodes/live.py) tell them: every run under its prompt, the node
// that made its report and the node that sampled.

const KEPT = 64
const runs = new Map() // oldest first

/** All known runs, oldest first. */
export function known() {
  return [...runs.values()]
}

/** What a run is known by. */
function keyOf({ prompt_id, node_id, samples }) {
  return `${prompt_id} ${node_id} ${samples}`
}

/**
 * Take in a message: {prompt_id, node_id, samples, sampler, workflow_id, nodes, report, figures}, whose report is whole, or
 * has only its newest steps and the `count` of all. Returns the run with its whole report; null where messages before this
 * one were missed.
 */
export function take(message) {
  const key = keyOf(message)
  const { count, ...report } = message.report
  if (count === undefined) {
    runs.delete(key)
    runs.set(key, message)
    if (runs.size > KEPT) runs.delete(runs.keys().next().value)
    return message
  }
  const run = runs.get(key)
  const first = report.steps[0]?.step ?? 1
  const steps = [...(run?.report.steps ?? []).filter((step) => step.step < first), ...report.steps]
  if (!run?.report.sigmas || steps.length !== count) return null
  run.report = { ...run.report, ...report, steps }
  run.figures = message.figures
  if ('left' in run) run.left = message.left // of a run that had begun before this page was opened
  return run
}

/** Whether this run is known to have ended. */
export function isOver(run) {
  const here = runs.get(keyOf(run))
  return here !== undefined && here.report.status !== 'running'
}

/** The server may be a new one: runs that were going on and that it does not know won't end. */
export function forgetUnended(told) {
  const there = new Set(told.map(keyOf))
  for (const run of runs.values()) {
    if (run.report.status === 'running' && !there.has(keyOf(run))) run.report.status = 'interrupted'
  }
}
