// The runs that the page knows of, as the server's messages (nodes/live.py) tell them: every run under its prompt and node.

const KEPT = 64
const runs = new Map() // oldest first

/** All known runs, oldest first. */
export function known() {
  return [...runs.values()]
}

/**
 * Take in a message: {prompt_id, node_id, sampler, workflow_id, nodes, report}, whose report is whole, or has only its
 * newest steps and the `count` of all. Returns the run with its whole report; null where messages before this one were missed.
 */
export function take(message) {
  const key = `${message.prompt_id} ${message.node_id}`
  const { count, ...report } = message.report
  if (count === undefined) {
    runs.delete(key)
    runs.set(key, { ...message, report: readable(report) })
    if (runs.size > KEPT) runs.delete(runs.keys().next().value)
    return runs.get(key)
  }
  const run = runs.get(key)
  const first = report.steps[0]?.step ?? 1
  const steps = [...(run?.report.steps ?? []).filter((step) => step.step < first), ...report.steps]
  if (!run?.report.sigmas || steps.length !== count) return null
  run.report = { ...run.report, ...report, steps }
  return run
}

/** Whether this run is known to have ended. */
export function isOver(run) {
  const here = runs.get(`${run.prompt_id} ${run.node_id}`)
  return here !== undefined && here.report.status !== 'running'
}

/** The server may be a new one: runs that were going on and that it does not know won't end. */
export function forgetUnended(told) {
  for (const run of runs.values()) {
    const here = told.some((other) => other.prompt_id === run.prompt_id && other.node_id === run.node_id)
    if (run.report.status === 'running' && !here) run.report.status = 'interrupted'
  }
}

const isNumber = (value) => Number.isFinite(value)
const isNumberOrNull = (value) => value === null || Number.isFinite(value)

/** The report if it can be drawn, else one that says why not. */
function readable(report) {
  const fits =
    report.status === 'unreadable' ||
    (Array.isArray(report.sigmas) &&
      Array.isArray(report.steps) &&
      Array.isArray(report.hand_overs) &&
      report.steps.every((s) => isNumber(s?.step) && [s.d, s.derivative, s.seconds, s.sigma].every(isNumberOrNull)) &&
      report.hand_overs.every((h) => isNumber(h?.after_step)) &&
      [report.switch, report.teacache, report.calls, report.seconds].every((part) => part && typeof part === 'object'))
  return fits ? report : { status: 'unreadable', error: 'The report that was saved with this workflow is not one of this pack.' }
}
