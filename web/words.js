// The chart's words in the page's language. They are written in English where they are shown; the translations lie in
// locales/<language>/main.json under "srdiffusion", by the English text.

let translations = {}

/** Speak by these translations from now on: English text -> text. */
export function learn(found) {
  translations = found ?? {}
}

/** A text in the page's language, with its {places} filled in. */
export function say(words, places = {}) {
  return (translations[words] ?? words).replace(/\{(\w+)\}/g, (place, name) => places[name] ?? place)
}

const REASONS = { criterion: 'criterion', earliest: 'earliest step', latest: 'latest step', step: 'step', sigma: 'sigma', listed: 'sketch_steps' }

/** A switch's reason in the page's language. */
export function reasonOf(name) {
  return say(REASONS[name] ?? name)
}
