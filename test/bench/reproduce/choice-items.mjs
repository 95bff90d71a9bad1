/**
 * Questions with four answers, made from a text: a stretch of it, its true continuation, and three distractors from
 * elsewhere in the same text, all of one length. Which is the true one is told by likelihood alone.
 */
import { drawBelow, seededRandom } from './random.mjs';

export const ANSWERS = 4;

/**
 * `count` items of `{context, answers, right}` from `ids`; token ids all. The four stretches of an item do not overlap, nor
 * does a distractor touch the context. Throws where the text is too short.
 */
export function choiceItems(ids, { count, contextTokens, answerTokens, seed }) {
  const item = contextTokens + answerTokens;
  if (ids.length < 2 * item + (ANSWERS - 1) * 2 * answerTokens) {
    throw new Error(`a text of ${ids.length} tokens is too short for a choice among ${ANSWERS} continuations of ${answerTokens} behind ${contextTokens}; give a longer one`);
  }
  const random = seededRandom(seed);
  return Array.from({ length: count }, () => {
    const start = drawBelow(random, ids.length - item + 1);
    const taken = [[start, start + item]];
    const distractors = [];
    while (distractors.length < ANSWERS - 1) {
      const from = drawBelow(random, ids.length - answerTokens + 1);
      if (taken.some(([begin, end]) => from < end && from + answerTokens > begin)) continue;
      taken.push([from, from + answerTokens]);
      distractors.push(ids.slice(from, from + answerTokens));
    }
    const right = drawBelow(random, ANSWERS);
    distractors.splice(right, 0, ids.slice(start + contextTokens, start + item));
    return { context: ids.slice(start, start + contextTokens), answers: distractors, right };
  });
}

/** All answers of all items as windows of one evaluation: its ids, window length and prompt length. */
export function choiceWindows(items) {
  const windows = items.flatMap(({ context, answers }) => answers.map((answer) => [...context, ...answer]));
  const context = windows[0].length;
  // The last token of the context asks for the first of the answer, so it is scored; the last of an answer asks for
  // nothing of its window, and its figure is dropped again.
  return { tokens: Int32Array.from([...windows.flat(), 0]), context, promptTokens: items[0].context.length - 1 };
}

/** Which answer of each item is the likeliest, from the scored tokens of `choiceWindows`; all are of one length. */
export function likeliestAnswers(tokenNll, { context, promptTokens }) {
  const scored = context - promptTokens;
  const totals = Array.from({ length: tokenNll.length / scored }, (_, window) => {
    let total = 0;
    for (let i = window * scored; i < (window + 1) * scored - 1; i += 1) total += tokenNll[i];
    return total;
  });
  return Array.from({ length: totals.length / ANSWERS }, (_, item) => {
    const here = totals.slice(item * ANSWERS, (item + 1) * ANSWERS);
    return here.indexOf(Math.min(...here));
  });
}
