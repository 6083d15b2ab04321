// One chart with its words, the "what if" slider and the buttons; knows a run and the page's DOM, not the host.

import { draw, short } from './chart.js'
import { costOf, deltaIn, handOverFor, remaining, sketchedSteps, speedUp } from './rule.js'
import { say } from './words.js'

const LOWEST = -3.3 // the slider's ends: log10 of delta
const HIGHEST = -0.5
const HEIGHT = { closed: 36, sampler: 430, inspector: 400 } // with the margin that the host leaves around it
const IDLE = 'The chart appears here when the sampler runs.'

export class View {
  /** deltaOf(run): the widget to write delta to, or null; resized(): called when the chart opens or closes. */
  constructor({ collapsible, deltaOf, resized, changed }) {
    Object.assign(this, { collapsible, deltaOf, resized, changed, run: null, chosen: null, before: 0 })
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
    this.body.append(this.detail, this.legend, this.frame, this.controls)
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
      set(this.body.hidden)
      this.resized()
    })
    set(false)
    box.append(toggle)
  }

  /** The height that the widget needs, in pixels of the graph. */
  minHeight() {
    if (!this.collapsible) return HEIGHT.inspector
    return this.body.hidden ? HEIGHT.closed : HEIGHT.sampler
  }

  /** By how many pixels the chart has grown since it was asked last: it was opened or closed. */
  grownBy() {
    const now = this.minHeight()
    const grown = now - (this.before || HEIGHT.closed)
    this.before = now
    return grown
  }

  /** Show a run; a different one than before starts with the slider at its own delta. */
  show(run) {
    if (run.prompt_id !== this.run?.prompt_id || run.sampler !== this.run?.sampler) this.chosen = null
    this.run = run
    this.refresh()
  }

  /** The report of the shown run, null where there is none to draw. */
  report() {
    const report = this.run?.report
    return report && report.status !== 'unreadable' && report.status !== 'not run' ? report : null
  }

  refresh() {
    const report = this.report()
    this.status.textContent = statusOf(this.run?.report)
    this.status.dataset.status = this.run?.report.status ?? 'idle'
    this.detail.textContent = report ? detailOf(report) : ''
    this.legend.replaceChildren(...(report ? ['sketch', 'render'].map((stage) => legendOf(report, stage)) : []))
    this.controls.hidden = !report
    this.frame.hidden = !report
    if (report) {
      this.refreshWhatIf(report)
      this.svg.setAttribute('aria-label', `${this.status.textContent}. ${this.detail.textContent}`)
    }
    this.redraw()
  }

  refreshWhatIf(report) {
    const adaptive = report.switch.mode === 'adaptive' && sketchedSteps(report) > 0
    for (const element of [this.slider.parentElement, this.outcome, this.use]) element.hidden = !adaptive
    if (!adaptive) return
    const delta = this.chosen ?? report.switch.delta
    this.slider.value = Math.log10(delta)
    this.slider.setAttribute('aria-valuetext', `delta ${delta}`)
    this.outcome.textContent = outcomeOf(report, delta)
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
    const whatIf = delta === null ? null : { delta, after: handOverFor(report, delta)?.after }
    draw(this.svg, report, clientWidth, clientHeight, whatIf)
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

function statusOf(report) {
  if (!report) return say(IDLE)
  if (report.status === 'unreadable') return report.error
  if (report.status === 'not run') return say('No run yet: connect the sampler\'s latent to "after".')
  const total = report.sigmas.length - 1
  const done = report.steps.filter((step) => step.seconds !== null).length
  if (report.status === 'interrupted') return say('Interrupted after step {done} of {total}', { done, total })
  if (report.status === 'failed') return say('Failed after step {done} of {total}: {error}', { done, total, error: report.error })
  const faster = speedUp(report)?.toFixed(2)
  if (report.status === 'done') {
    const took = time(report.seconds.sketch + report.seconds.render)
    const ran = report.hand_overs.length && !report.calls.render ? done : total // SR Sketch ends at its hand-over
    return listed(say('Done: {total} steps in {time}', { total: ran, time: took }), faster && say('{times}x over the sketch alone', { times: faster }))
  }
  const sketching = (report.hand_overs.at(-1)?.to ?? 'sketch') === 'sketch'
  const left = remaining(report)
  return listed(
    say(sketching ? 'Sketching: step {done} of {total}' : 'Rendering: step {done} of {total}', { done, total }),
    left && say(left.bound ? 'at most {time} left' : 'about {time} left', { time: time(left.seconds) }),
    faster && say('about {times}x over the sketch alone', { times: faster })
  )
}

/** What there is of these, as one line. */
function listed(...parts) {
  return parts.filter(Boolean).join(' · ')
}

function detailOf(report) {
  const total = report.sigmas.length - 1
  const why = {
    criterion: ({ derivative }) => {
      const delta = short(deltaIn(report, report.switch.delta))
      return say('D fell by {fall}, less than {delta} (delta)', { fall: short(derivative ?? 0), delta })
    },
    max_step: () => say('the latest step of an adaptive switch'),
    step: () => say('switch_step is {step}', { step: report.switch.switch_step }),
    sigma: () => say('below switch_sigma {sigma}', { sigma: report.switch.switch_sigma })
  }
  const sentences = report.hand_overs.map((h) => {
    const places = { stage: say(h.to), step: h.after_step, total, reason: h.reason }
    const words = say('{stage} took over after step {step} of {total}, {reason}', places)
    return why[h.reason] ? `${words}: ${why[h.reason](h)}` : words
  })
  if (sentences.length) return `${sentences.join('; ')}.`
  return say(report.status === 'done' ? 'No hand-over: the sketch ran all steps.' : 'No hand-over yet.')
}

function legendOf(report, stage) {
  const steps = report.steps.filter((step) => step.stage === stage)
  const reused = steps.filter((step) => step.reused).length
  const entry = make('span', { className: `srd-key srd-key-${stage}` })
  const places = { stage: say(stage), steps: steps.length, reused, time: time(report.seconds[stage]) }
  const cached = report.teacache[stage]?.table
  entry.textContent = say(cached ? '{stage}: {steps} steps ({reused} reused, hatched), {time}' : '{stage}: {steps} steps, {time}', places)
  return entry
}

function outcomeOf(report, delta) {
  const found = handOverFor(report, delta)
  const steps = found?.after ?? sketchedSteps(report) + 1
  const cost = costOf(report, Math.min(steps, report.sigmas.length - 1))
  const seconds = cost === null ? '' : `, ${say(found ? 'about {time}' : 'at least {time}', { time: time(cost) })}`
  if (found) return say('delta {delta}: after step {step} ({reason})', { delta, step: found.after, reason: found.reason }) + seconds
  return say('delta {delta}: later than step {step}, where the curve ends', { delta, step: steps - 1 }) + seconds
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
