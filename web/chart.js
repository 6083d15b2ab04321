// The report as an SVG: D and its fall over the steps, who ran each step, and what it cost. Text only ever goes in as text.

import { reasonOf, say } from './words.js'

const SVG = 'http://www.w3.org/2000/svg'
const LEFT = 54 // room for -1.2e-3
const RIGHT = 12
const LINE = 19 // pixels of a line of text
const TOP = LINE + 2
const GAP = LINE + 5 // between two panels
const SHARES = { d: 0.36, fall: 0.34, seconds: 0.3 } // of the height that is left for curves
const TITLES = { d: 'D: change of the prediction', fall: 'fall of D', seconds: 'seconds of each step' }
const COLOURS = 4 // of stages, srd-stage-0 and so on in the style sheet; further stages begin anew
let charts = 0

/** The class with the colour of a stage, by its place in the route. */
export function toneOf(report, name) {
  return `srd-stage-${Math.max(report.stages.findIndex((stage) => stage.name === name), 0) % COLOURS}`
}

/** Draw a run into an <svg>, at width x height pixels; `whatIf` is {delta, after} of the slider, or null. */
export function draw(svg, { report, figures }, width, height, whatIf) {
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`)
  svg.srdHatch ??= `srd-hatch-${++charts}`
  svg.replaceChildren(hatches(svg.srdHatch))
  const total = Math.max(report.sigmas.length - 1, 1)
  const x = (step) => LEFT + ((width - LEFT - RIGHT) * (step - 1)) / total // the left edge of a step's column
  const plot = { svg, report, figures, x, total, width, whatIf, right: width - RIGHT }
  const bottom = height - LINE
  const room = bottom - TOP - 2 * GAP
  let top = TOP
  const panels = figures.panels.map((shown) => {
    const place = { ...plot, ...shown, top, bottom: top + room * SHARES[shown.field] }
    top = place.bottom + GAP
    return place
  })
  panels.forEach(panel)
  ticks(plot, height - 5)
  handOvers(plot, bottom)
  for (const { field, top } of panels) text(svg, LEFT, top - 6, say(TITLES[field]), 'srd-title') // over the switches' lines
  hints(plot, bottom)
}

function panel(plot) {
  const { svg, report, x, field, low, high, earliest, top, bottom, right } = plot
  for (const step of report.steps) {
    add(svg, 'rect', { class: `srd-tint ${toneOf(report, step.stage)}`, x: x(step.step), y: top, width: x(step.step + 1) - x(step.step), height: bottom - top })
  }
  if (earliest > 1) {
    const end = Math.min(x(earliest), right) // in the steps before it the rule could not switch
    add(svg, 'rect', { class: 'srd-fixed', x: LEFT, y: top, width: end - LEFT, height: bottom - top })
    if (field === 'd') text(svg, LEFT + 4, bottom - 5, 'fix_step', 'srd-faint') // the curve is high there
  }
  if (field === 'seconds') seconds(plot)
  else curve(plot)
  add(svg, 'line', { class: 'srd-axis', x1: LEFT, y1: bottom, x2: right, y2: bottom })
  text(svg, LEFT - 6, top + 11, ofAxis(high), 'srd-end')
  text(svg, LEFT - 6, bottom, ofAxis(low), 'srd-end')
}

function curve({ svg, report, x, field, low, high, delta, top, bottom, right, whatIf }) {
  const points = report.steps.filter((step) => step[field] !== null).map((step) => [step.step, step[field]])
  const y = (value) => Math.min(Math.max(bottom - ((value - low) / (high - low)) * (bottom - top), top), bottom)
  if (delta) {
    add(svg, 'rect', { class: 'srd-band', x: LEFT, y: y(delta), width: right - LEFT, height: y(0) - y(delta) })
    text(svg, right - 4, y(delta) - 4, `delta ${delta}`, 'srd-end')
    if (whatIf && whatIf.delta !== delta) {
      const other = y(whatIf.delta)
      add(svg, 'line', { class: 'srd-what-if', x1: LEFT, y1: other, x2: right, y2: other })
    }
  }
  if (field === 'd') fades({ svg, report, x, top, bottom })
  const middle = (x(2) - x(1)) / 2
  const dots = points.map(([step, value]) => [x(step) + middle, y(value)])
  add(svg, 'polyline', { class: 'srd-line', points: dots.map((dot) => dot.join(',')).join(' ') })
  for (const [cx, cy] of dots) add(svg, 'circle', { class: 'srd-dot', cx, cy, r: Math.min(3, middle) })
}

/** How much of a stage's last velocity is held at most in each step after it: a slope in that stage's colour. */
function fades({ svg, report, x, top, bottom }) {
  for (const { after_step, fade } of report.hand_overs) {
    if (!fade?.length) continue
    const from = report.steps.find((step) => step.step === after_step)?.stage
    const corners = fade.flatMap((share, i) => [after_step + 1 + i, after_step + 2 + i].map((step) => `${x(step)},${bottom - share * (bottom - top)}`))
    const points = [`${x(after_step + 1)},${bottom}`, ...corners, `${x(after_step + 1 + fade.length)},${bottom}`].join(' ')
    add(svg, 'polygon', { class: `srd-fade ${toneOf(report, from)}`, points })
    text(svg, x(after_step + 1) + 6, bottom - 5, say('fade'), 'srd-faint')
  }
}

function seconds({ svg, report, figures, x, high, top, bottom }) {
  const column = (step, name, height) => {
    const width = x(step + 1) - x(step)
    const gap = Math.min(1, width / 4)
    return add(svg, 'rect', { class: name, x: x(step) + gap, y: bottom - height, width: width - 2 * gap, height })
  }
  for (const step of report.steps) {
    const tone = toneOf(report, step.stage)
    if (step.seconds) column(step.step, `srd-bar ${tone}`, (step.seconds / high) * (bottom - top))
    if (step.reused) hatched(column(step.step, 'srd-reused', bottom - top), svg, tone)
  }
  const charged = toneOf(report, report.hand_overs.at(-1)?.to)
  for (const step of figures.planned) hatched(column(step, 'srd-reused srd-planned', bottom - top), svg, charged)
}

function hatched(rect, svg, tone) {
  rect.setAttribute('fill', `url(#${svg.srdHatch}-${tone})`)
}

/** A pattern of diagonal lines in the colour of every stage. */
function hatches(id) {
  const definitions = document.createElementNS(SVG, 'defs')
  for (let place = 0; place < COLOURS; place++) {
    const tone = `srd-stage-${place}`
    const lines = { id: `${id}-${tone}`, width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }
    add(add(definitions, 'pattern', lines), 'line', { class: `srd-hatch ${tone}`, x1: 0, y1: 0, x2: 0, y2: 6 })
  }
  return definitions
}

function ticks({ svg, x, total }, y) {
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => (x(1 + n) - x(1)) >= 28) ?? total
  text(svg, LEFT - 6, y, say('step'), 'srd-end')
  for (let step = every; step <= total; step += every) text(svg, (x(step) + x(step + 1)) / 2, y, String(step), 'srd-middle')
}

function handOvers({ svg, report, x, right, whatIf }, bottom) {
  const top = TOP
  if (whatIf?.after && whatIf.after !== report.hand_overs[0]?.after_step) {
    const at = x(whatIf.after + 1)
    add(svg, 'line', { class: 'srd-what-if', x1: at, y1: top, x2: at, y2: bottom })
  }
  const ends = [] // of the labels in each line
  for (const { after_step, to, reason } of report.hand_overs) {
    const at = x(after_step + 1)
    add(svg, 'line', { class: 'srd-mark', x1: at, y1: top, x2: at, y2: bottom, 'data-after': after_step })
    const label = `${say(to)}: ${reasonOf(reason)}`
    const wide = 8 * label.length
    const fits = at + 6 + wide < right
    const end = at - 6 >= wide ? at - 6 : right // of one that does not fit: before the line, in a narrow chart over it
    const begin = fits ? at + 6 : Math.max(end - wide, 0)
    let line = ends.findIndex((before) => before <= begin)
    if (line < 0) line = ends.length
    ends[line] = begin + wide
    text(svg, fits ? begin : end, top + 14 + LINE * line, label, fits ? 'srd-mark-text' : 'srd-mark-text srd-end')
  }
}

/** What a step was, for whoever points at it. */
function hints({ svg, report, x }, bottom) {
  for (const step of report.steps) {
    const column = add(svg, 'rect', { class: 'srd-column', x: x(step.step), y: TOP, width: x(step.step + 1) - x(step.step), height: bottom - TOP })
    const facts = [say('step {step}, {stage}', { step: step.step, stage: say(step.stage) }), `sigma ${short(step.sigma)}`]
    if (step.d !== null) facts.push(`D ${short(step.d)}`)
    if (step.fall !== null) facts.push(say('fall of D {fall}', { fall: short(step.fall) }))
    if (step.seconds !== null) facts.push(say('{seconds} s', { seconds: short(step.seconds) }))
    if (step.reused) facts.push(say('reused by a cache'))
    add(column, 'title', {}).textContent = facts.join('\n')
  }
}

/** A number in so many digits. */
export function short(number, digits = 3) {
  return String(Number(number.toPrecision(digits)))
}

/** A number of the axis, in so few letters that they have room left of it. */
function ofAxis(number) {
  const plain = short(number, 2)
  return plain.length > 6 ? number.toExponential(1).replace('.0e', 'e') : plain
}

function text(parent, x, y, words, name) {
  add(parent, 'text', { class: name, x, y }).textContent = words
}

function add(parent, tag, attributes) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  parent.append(element)
  return element
}
