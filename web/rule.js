// What a recorded report says of other deltas: the adaptive rule of srd_core/criterion.py over its curve of D, TeaCache's
// plan of srd_core/teacache.py over the growth that the report keeps, and the seconds of bench/cost.py for both.
// No page and no host in here.

const PAPER_STEPS = 50
const RET_STEPS = 5 // as in srd_core/teacache.py
const MIN_STEPS = 5
const MAX_REUSES = 5

/** Delta as it is used in a run of this report's length (Switch.delta_for); older reports used it as set. */
export function deltaIn(report, delta) {
  return report.delta ? delta * (PAPER_STEPS / Math.max(report.sigmas.length - 1, 1)) ** 2 : delta
}

/** Whether the rule holds after this recorded step (Eq. 4 and 5; a batch when every sample does). */
function settled(step, delta) {
  const high = step.derivative
  const low = step.derivative_low ?? high
  return high !== null && low > 0 && high < delta
}

/**
 * Where an adaptive run with this delta hands over: {after, reason}, reason criterion or max_step; or null where the
 * sketch runs all steps that were recorded of it, so that the curve does not tell.
 */
export function handOverFor(report, delta) {
  const total = report.sigmas.length - 1
  const used = deltaIn(report, delta)
  for (const step of report.steps) {
    if (step.stage !== 'sketch' || step.step >= total) return null
    if (step.step >= report.limit) return { after: step.step, reason: 'max_step' }
    if (step.step > report.fix_step && settled(step, used)) return { after: step.step, reason: 'criterion' }
  }
  return null
}

/** Mean seconds of the steps that `which` picks; null while there is none. */
function mean(report, which) {
  const seconds = report.steps.filter((step) => step.seconds !== null && which(step)).map((step) => step.seconds)
  return seconds.length ? seconds.reduce((a, b) => a + b, 0) / seconds.length : null
}

/** Mean recorded seconds a step of a stage, null where it has not run. */
export function secondsPerStep(report, stage) {
  return mean(report, (step) => step.stage === stage)
}

/** Mean recorded seconds of a stage's computed step and of one that TeaCache reused, null where there was none. */
function stepSeconds(report, stage) {
  const reused = mean(report, (step) => step.stage === stage && step.reused)
  if (!followed(report, stage)) return { computed: secondsPerStep(report, stage), reused }
  return { computed: mean(report, (step) => step.stage === stage && !step.reused) ?? reused, reused }
}

/** Whether the plan that TeaCache made at the hand-over reuses this step (1-based); null: no plan says. */
function inPlan(report, stage, step) {
  const plan = report.teacache[stage]
  const index = step - 1 - (plan?.first_step ?? 0)
  return plan?.table && index >= 0 && index < plan.reuse.length ? plan.reuse[index] : null
}

/** Whether TeaCache reused what it had planned to, as far as the run went: some samplers and nodes keep it from that. */
function followed(report, stage) {
  const ran = report.steps.filter((step) => step.stage === stage && step.seconds !== null)
  return ran.every((step) => step.reused || !inPlan(report, stage, step.step))
}

/** Whether this step (1-based) is still to be reused; null: no plan says, or the run does not keep to it. */
export function planned(report, stage, step) {
  return followed(report, stage) ? inPlan(report, stage, step) : null
}

/** Which of the run's steps (0-based) TeaCache reuses in a stage that runs steps first ... end - 1; false where it is off. */
function planFor(report, stage, first, end) {
  const { growth, threshold, form } = (followed(report, stage) && report.teacache[stage]) || {}
  const plan = []
  let sum = 0
  let inARow = 0
  for (let step = first; step < end; step++) {
    sum += growth?.[step] ?? Infinity
    const forced = step === first || (form === 'e0' && step < RET_STEPS) || step === report.sigmas.length - 2
    const reuse = report.sigmas.length - 1 - first >= MIN_STEPS && !forced && inARow < MAX_REUSES && sum < threshold
    inARow = reuse ? inARow + 1 : 0
    if (!reuse) sum = 0
    plan.push(reuse)
  }
  return plan
}

/**
 * Seconds of a run with this many sketch steps, from the recorded seconds a step; null where a stage has not run, or
 * would reuse steps and has not reused one.
 */
export function costOf(report, sketchSteps) {
  const total = report.sigmas.length - 1
  const stages = [['sketch', 0, sketchSteps], ['render', sketchSteps, total]].filter(([, first, end]) => first < end)
  let cost = 0
  for (const [stage, first, end] of stages) {
    const { computed, reused } = stepSeconds(report, stage)
    const plan = planFor(report, stage, first, end)
    if (computed === null || (reused === null && plan.includes(true))) return null
    for (const reuse of plan) cost += reuse ? reused : computed
  }
  return cost
}

/** Steps in a row from the first on that the sketch ran. */
export function sketchedSteps(report) {
  const other = report.steps.findIndex((step) => step.stage !== 'sketch')
  return other < 0 ? report.steps.length : other
}

/** Seconds until a running run ends: {seconds, bound}; bound: it is what the sketch alone would take. null: unknown. */
export function remaining(report) {
  const total = report.sigmas.length - 1
  const done = report.steps.filter((step) => step.seconds !== null).length
  const stage = report.hand_overs.at(-1)?.to ?? 'sketch'
  const { computed, reused } = stepSeconds(report, stage)
  if (computed === null) return null
  const kept = followed(report, stage)
  let seconds = 0
  for (let step = done + 1; step <= total; step++) seconds += kept && inPlan(report, stage, step) ? (reused ?? 0) : computed
  return { seconds, bound: stage === 'sketch' && report.render !== '' }
}

/**
 * How many times faster than the sketch alone: of a finished run as srd_core/report.py says it, of a running one what it
 * will be; null while one of the stages has not run.
 */
export function speedUp(report) {
  const { calls, seconds } = report
  if (!calls.sketch || !calls.render || !seconds.sketch) return null
  if (report.status !== 'running') {
    return ((seconds.sketch / calls.sketch) * (calls.sketch + calls.render)) / (seconds.sketch + seconds.render)
  }
  const left = remaining(report)
  const each = secondsPerStep(report, 'sketch')
  if (left === null || left.bound || each === null) return null
  const spent = report.steps.reduce((sum, step) => sum + (step.seconds ?? 0), 0)
  return ((report.sigmas.length - 1) * each) / (spent + left.seconds)
}
