// One chart with its words, the "what if" slider and the buttons; knows a run and the page's DOM, not the host.

import { draw, short, toneOf } from './chart.js'
import { reasonOf, say } from './words.js'

const LOWEST = -3.3 // the slider's ends: log10 of delta
const HIGHEST = -0.5
const HEIGHT = { closed: 36, sampler: 430, inspector: 400 } // with the margin that the host leaves around it
const DOING = { 'sketch': 'Sketching: step {done} of {total}', 'render': 'Rendering: step {done} of {total}' }
const SWITCHED = 'Switched at step {step} of {total} ({percent} %): {why}.'
const SWITCHED_TO = 'Switched to {stage} at step {step} of {total} ({percent} %): {why}.'
const UNSET = { delta: '?', fix_step: '?', switch_step: '?', switch_sigma: '?' } // where a report does not have all settings
const IDLE = 'Run it to see the chart.'

export class View {
  /** deltaOf(run): the widget to write delta to, or null; resized(more): called when the chart opens or closes and so gets higher by `more`. */
  constructor({ collapsible, deltaOf, resized, changed }) {
    Object.assign(this, { collapsible, deltaOf, resized, changed, run: null, last: null, chosen: null })
    this.element = this.build()
    // Keys and drags are meant for the chart's own controls, not for the canvas or the node below.
    for (const event of ['pointerdown', 'keydown', 'copy']) {
      this.controls.addEventListener(event, (e) => e.stopPropagation())
    }
    new ResizeObserver(() => this.redraw()).observe(this.frame)
    this.refresh()
  }

  build() {
    this.status = make('div', { className: 'srd-status', role: 'status' })
    this.detail = make('div', { className: 'srd-detail' })
    this.notes = make('div', { className: 'srd-notes' })
    this.legend = make('div', { className: 'srd-legend' })
    this.svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
    this.svg.setAttribute('role', 'img')
    this.frame = make('div', { className: 'srd-frame' })
    this.frame.append(this.svg)
    this.slider = make('input', { type: 'range', min: LOWEST, max: HIGHEST, step: 0.02, ariaLabel: say('what if delta were') })
    this.slider.addEventListener('input', () => {
      this.chosen = deltaAt(Number(this.slider.value))
      this.refresh()
    })
    this.outcome = make('output', { className: 'srd-outcome' })
    this.use = make('button', { type: 'button', textContent: say('use this delta') })
    this.use.addEventListener('click', () => this.writeDelta())
    this.copy = make('button', { type: 'button', textContent: say('copy report') })
    this.copy.addEventListener('click', () => this.copyReport())
    const label = make('label', { className: 'srd-what' })
    label.append(make('span', { textContent: say('what if') }), this.slider)
    const buttons = make('div', { className: 'srd-buttons' })
    buttons.append(this.use, this.copy)
    this.controls = make('div', { className: 'srd-controls' })
    this.controls.append(label, this.outcome, buttons)
    this.body = make('div', { className: 'srd-body' })
    this.body.append(this.detail, this.notes, this.legend, this.frame, this.controls)
    const box = make('div', { className: 'srd-chart' })
    if (this.collapsible) this.collapse(box)
    else box.append(this.status)
    box.append(this.body)
    return box
  }

  /** Put the status on a button that opens and closes the chart; closed at first. */
  collapse(box) {
    const toggle = make('button', { type: 'button', className: 'srd-toggle' })
    const set = (open) => {
      this.body.hidden = !open
      toggle.setAttribute('aria-expanded', open)
      box.classList.toggle('srd-closed', !open)
    }
    toggle.append(this.status)
    toggle.addEventListener('pointerdown', (e) => e.stopPropagation())
    toggle.addEventListener('click', () => {
      const before = this.minHeight()
      set(this.body.hidden)
      this.resized(this.minHeight() - before)
    })
    set(false)
    box.append(toggle)
  }

  /** The height that the widget needs, in pixels of the graph. */
  minHeight() {
    if (!this.collapsible) return HEIGHT.inspector
    return this.body.hidden ? HEIGHT.closed : HEIGHT.sampler
  }

  /** By how many pixels a chart that folds is higher now than folded. */
  unfolded() {
    return this.minHeight() - HEIGHT.closed
  }

  /** Show a run, or none (null); that of another prompt than before starts with the slider at its own delta. */
  show(run) {
    if (run?.prompt_id !== this.run?.prompt_id) this.chosen = null // an Inspector's own message follows its sampler's
    this.run = run
    this.refresh()
  }

  /** Another run is to come, that of `prompt` if it is known: what an older one has left goes. */
  reset(prompt) {
    if (!this.run || this.run.prompt_id === prompt || this.run.report.status === 'running') return
    this.last = this.run
    this.run = null
    this.refresh()
  }

  /** The run to come has nothing to do: what the one before left is still true. */
  restore() {
    if (!this.run && this.last) this.show(this.last)
  }

  /** The report of the shown run, null where there is none to draw. */
  report() {
    const report = this.run?.report
    return report && report.status !== 'unreadable' && report.status !== 'not run' ? report : null
  }

  refresh() {
    const report = this.report()
    this.status.textContent = statusOf(this.run)
    this.status.dataset.status = this.run?.report.status ?? 'idle'
    this.status.title = report ? figuresOf(this.run) : ''
    this.detail.textContent = report ? detailOf(report) : ''
    this.detail.title = report ? switchesOf(report) : ''
    this.notes.replaceChildren(...(report?.notes ?? []).map((note) => make('div', { textContent: note })))
    this.legend.replaceChildren(...(report?.stages ?? []).map((stage) => legendOf(report, stage)))
    this.controls.hidden = !report
    this.frame.hidden = !report
    if (report) {
      this.refreshWhatIf(report)
      this.svg.setAttribute('aria-label', `${this.status.textContent}. ${this.detail.textContent}`)
    }
    this.redraw()
  }

  refreshWhatIf(report) {
    const rows = this.run.figures.what_if
    for (const element of [this.slider.parentElement, this.outcome, this.use]) element.hidden = !rows.length
    if (!rows.length) return
    const delta = this.chosen ?? report.switch.delta
    this.slider.value = Math.log10(delta)
    this.slider.setAttribute('aria-valuetext', `delta ${delta}`)
    this.outcome.textContent = outcomeOf(this.run, delta)
    const widget = this.deltaOf(this.run)
    this.use.disabled = !widget || widget.value === delta
    this.use.title = widget ? '' : say('The sampler is not in this workflow, or a link sets its delta.')
  }

  /** Draw at the page's next frame, however many messages come before it. */
  redraw() {
    if (this.waiting) return
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null
      this.drawNow()
    })
  }

  drawNow() {
    const report = this.report()
    const { clientWidth, clientHeight } = this.frame
    if (!report || clientWidth < 120 || clientHeight < 100) return
    const delta = this.chosen
    const whatIf = delta === null ? null : { delta, after: rowFor(this.run, delta)?.after }
    draw(this.svg, this.run, clientWidth, clientHeight, whatIf)
  }

  writeDelta() {
    const widget = this.deltaOf(this.run)
    if (!widget) return
    widget.value = this.chosen ?? this.run.report.switch.delta
    widget.callback?.(widget.value)
    this.changed()
    this.refresh()
  }

  async copyReport() {
    const done = await copyText(JSON.stringify(this.run.report, null, 1))
    this.copy.textContent = say(done ? 'copied' : 'copying is not allowed here')
    setTimeout(() => (this.copy.textContent = say('copy report')), 1500)
  }
}

function statusOf(run) {
  const report = run?.report
  if (!report) return say(IDLE)
  if (report.status === 'unreadable') return report.error
  if (report.status === 'not run') return say('No run yet: connect the sampler\'s latent to "after".')
  const total = report.sigmas.length - 1
  const done = doneOf(report.steps)
  if (report.status === 'interrupted') return say('Interrupted after step {done} of {total}', { done, total })
  if (report.status === 'failed') return say('Failed after step {done} of {total}: {error}', { done, total, error: report.error })
  if (report.status === 'done') return resultOf(run)
  const { left, speed_up: times } = run.figures
  const last = report.hand_overs.at(-1)?.to ?? report.stages[0]?.name
  return listed(
    say(DOING[last] ?? '{stage}: step {done} of {total}', { stage: say(last), done, total }),
    left && say(left.bound ? 'at most {time} left' : 'about {time} left', { time: time(left.seconds) }),
    times && timesOf(times)
  )
}

/** What came of a run: "1.6x, switched at 14 of 50, 7.6 s". */
function resultOf({ report, figures }) {
  const total = report.sigmas.length - 1
  const steps = report.hand_overs.map((h) => h.after_step).join(', ')
  const switched = steps ? say('switched at {steps} of {total}', { steps, total }) : say('not switched, {total} steps', { total })
  return [figures.speed_up && timesOf(figures.speed_up), switched, time(figures.seconds)].filter(Boolean).join(', ')
}

/** How many of these steps have ended. */
function doneOf(steps) {
  return steps.filter((step) => step.seconds !== null).length
}

/** "1.6x", and what it means where a run is slower. */
function timesOf(times) {
  const shown = times.toFixed(times < 1 ? 2 : 1)
  return Number(shown) < 1 ? say('{times}x (slower)', { times: shown }) : `${shown}x`
}

/** The figures behind the result, for whoever points at it. */
function figuresOf({ report, figures: { speed_up: times, seconds } }) {
  const steps = report.status === 'done' && say('{steps} steps in {time}', { steps: doneOf(report.steps), time: time(seconds) })
  return [times && speedOf(report, times), steps, switchesOf(report)].filter(Boolean).join('\n')
}

function speedOf(report, times) {
  const places = { times: times.toFixed(2), stage: say(report.stages[0].name) }
  if (Number(places.times) < 1) return say('{times}x: slower than the {stage} alone (estimated)', places)
  return say('{times}x as fast as the {stage} alone (estimated)', places)
}

/** What there is of these, as one line. */
function listed(...parts) {
  return parts.filter(Boolean).join(' · ')
}

/** When and why it switched, in a sentence for each switch. */
function detailOf(report) {
  const total = report.sigmas.length - 1
  const sentences = report.hand_overs.map((h) => {
    const places = { stage: say(h.to), step: h.after_step, total, percent: Math.round((100 * h.after_step) / total) }
    const why = whyOf(h, { ...UNSET, ...report.switch, ...h.rule })
    return say(report.hand_overs.length > 1 ? SWITCHED_TO : SWITCHED, { ...places, why })
  })
  if (sentences.length && report.given_steps && report.given_steps !== total) {
    sentences.push(say('{total} steps in the place of {given}.', { total, given: report.given_steps }))
  }
  if (sentences.length) return sentences.join(' ')
  if (report.status !== 'done') return say('Not switched yet.')
  return say('Not switched: the {stage} ran all steps.', { stage: say(report.stages[0].name) })
}

/** Why it switched when it did. */
function whyOf({ reason, sigma }, set) {
  const below = say('below switch_sigma {sigma}', { sigma: set.switch_sigma })
  switch (reason) {
    case 'criterion':
      return say('the composition settled')
    case 'earliest':
      return say('the composition had settled before fix_step {step} allowed it', { step: set.fix_step })
    case 'latest':
      if (set.max_step) return say('max_step is {step}', { step: set.max_step })
      return sigma < set.switch_sigma ? below : reasonOf(reason)
    case 'step':
      return say('switch_step is {step}', { step: set.switch_step })
    case 'sigma':
      return below
    case 'listed':
      return set.sketch_steps
  }
  return reasonOf(reason)
}

/** The numbers of each switch, a line each. */
function switchesOf(report) {
  const lines = report.hand_overs.map(({ to, sigma, reason, fall, fade }) => {
    const facts = [say('{stage} from sigma {sigma}', { stage: say(to), sigma: short(sigma) })]
    if (fade?.length) facts.push(say('fade from {share} %', { share: Math.round(100 * fade[0]) }))
    if (reason === 'criterion') {
      facts.push(say('D fell by {fall}, less than {delta} (delta)', { fall: short(fall ?? 0), delta: report.switch.delta ?? '?' }))
    }
    return facts.join(', ')
  })
  return lines.join('\n')
}

function legendOf(report, { name, teacache, seconds }) {
  const steps = report.steps.filter((step) => step.stage === name && step.seconds !== null)
  const reused = steps.filter((step) => step.reused).length
  const entry = make('span', { className: `srd-key ${toneOf(report, name)}` })
  const places = { stage: say(name), steps: steps.length, reused, time: time(seconds) }
  entry.textContent = say(reused || teacache.table ? '{stage}: {steps} steps ({reused} reused, hatched), {time}' : '{stage}: {steps} steps, {time}', places)
  return entry
}

/** What the server's table says of a delta: {delta, after, reason, seconds}. */
function rowFor(run, delta) {
  return run.figures.what_if.find((row) => row.delta < delta)
}

function outcomeOf(run, delta) {
  const { after, reason, seconds } = rowFor(run, delta)
  const about = after === null ? 'at least {time}' : 'about {time}'
  const cost = seconds === null ? '' : `, ${say(about, { time: time(seconds) })}`
  if (after !== null) return say('delta {delta}: after step {step} ({reason})', { delta, step: after, reason: reasonOf(reason) }) + cost
  const step = run.report.hand_overs[0]?.after_step ?? run.report.steps.length
  return say('delta {delta}: later than step {step}, where the curve ends', { delta, step }) + cost
}

/** The delta at a place of the slider, in two digits as the widget takes it. */
function deltaAt(place) {
  return Math.max(Math.round(Number((10 ** place).toPrecision(2)) * 1e4) / 1e4, 1e-4)
}

function time(seconds) {
  if (seconds < 100) return say('{seconds} s', { seconds: short(seconds) })
  const whole = Math.round(seconds)
  return say('{minutes} min {seconds} s', { minutes: Math.floor(whole / 60), seconds: whole % 60 })
}

/** Put text on the clipboard; pages that do not come over HTTPS have only the old way. Returns whether it worked. */
async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text)
      return true
    } catch (error) {
      console.warn('SRDiffusion: the clipboard refused, trying the old way', error)
    }
  }
  const field = make('textarea', { value: text })
  document.body.append(field)
  field.select()
  const done = document.execCommand('copy')
  field.remove()
  return done
}

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties)
}
