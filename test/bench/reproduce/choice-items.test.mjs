import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ANSWERS, choiceItems, choiceWindows, likeliestAnswers } from './choice-items.mjs';

// Every id is its own position, so that an item tells where it came from.
const ids = Int32Array.from({ length: 2000 }, (_, at) => at);
const options = { count: 50, contextTokens: 32, answerTokens: 8, seed: 3 };

test('the right answer continues the context, and no distractor overlaps with it or another', () => {
  for (const { context, answers, right } of choiceItems(ids, options)) {
    assert.equal(context.length, 32);
    assert.equal(answers.length, ANSWERS);
    assert.equal(answers[right][0], context.at(-1) + 1);
    const used = [...context, ...answers.flatMap((answer) => [...answer])];
    assert.equal(new Set(used).size, used.length);
    for (const answer of answers) assert.equal(answer.at(-1) - answer[0], 7);
  }
});

test('the same seed gives the same items, another one others; every place is right sometimes', () => {
  const [once, again, other] = [choiceItems(ids, options), choiceItems(ids, options), choiceItems(ids, { ...options, seed: 4 })];
  assert.deepEqual(once, again);
  assert.notDeepEqual(once, other);
  assert.deepEqual([...new Set(once.map(({ right }) => right))].sort(), [0, 1, 2, 3]);
});

test('a text that is too short is refused', () => {
  assert.throws(() => choiceItems(ids.slice(0, 60), options), /60 tokens is too short/);
});

test('an answer is scored on its own tokens alone', () => {
  const items = choiceItems(ids, { ...options, count: 2 });
  const windows = choiceWindows(items);
  assert.equal(windows.tokens.length, 2 * ANSWERS * windows.context + 1);
  assert.equal(windows.tokens[windows.promptTokens + 1], items[0].answers[0][0]);
  // Per window: the nats of 8 answer tokens, then one of the window's end that must not count.
  const scored = windows.context - windows.promptTokens;
  assert.equal(scored, 9);
  const nll = new Float32Array(2 * ANSWERS * scored).fill(1);
  for (let window = 0; window < 2 * ANSWERS; window += 1) nll[window * scored + 8] = window % 2 === 0 ? 0 : 100;
  nll[2 * scored + 7] = 0.5;
  nll[(ANSWERS + 1) * scored] = 0.25;
  assert.deepEqual(likeliestAnswers(nll, windows), [2, 1]);
});
