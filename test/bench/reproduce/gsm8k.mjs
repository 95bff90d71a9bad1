/**
 * GSM8K (Cobbe et al. 2021) in its public form: JSON Lines of `{question, answer}`, the answer's reasoning ending in
 * `#### <number>`. A model answers behind worked examples; what counts is its number, exactly.
 */

/** Throws with file, line and reason; blank lines are skipped. */
export function parseGsm8k(text, path) {
  return text.split('\n').flatMap((line, index) => {
    if (line.trim() === '') return [];
    const wrong = (why) => new Error(`${path}:${index + 1}: ${why}; expected {"question": ..., "answer": "... #### number"}`);
    let item;
    try {
      item = JSON.parse(line);
    } catch {
      throw wrong('not JSON');
    }
    if (typeof item?.question !== 'string' || typeof item.answer !== 'string') throw wrong('question or answer is missing');
    const number = markedNumber(item.answer);
    if (number === null) throw wrong('the answer has no number behind ####');
    return [{ question: item.question.trim(), answer: item.answer.trim(), number }];
  });
}

const NUMBER = /-?\$?\d[\d,]*(?:\.\d+)?/g;
const toNumber = (text) => Number(text.replace(/[$,]/g, ''));

function markedNumber(text) {
  const marked = /####\s*(-?\$?\d[\d,]*(?:\.\d+)?)/.exec(text);
  return marked ? toNumber(marked[1]) : null;
}

/** The number behind the first ####, else the last one of the text, else null. Commas and a dollar sign do not count. */
export function finalNumber(text) {
  const marked = markedNumber(text);
  if (marked !== null) return marked;
  const all = text.match(NUMBER);
  return all ? toNumber(all.at(-1)) : null;
}

export const STOP = '\nQuestion:';
/** `<<2*3=6>>` are the data set's notes for a calculator; examples are shown without them. */
const worked = ({ question, answer }) => `Question: ${question}\nAnswer: ${answer.replace(/<<[^>]*>>/g, '')}\n\n`;
export const gsm8kPrompt = (examples, question) => `${examples.map(worked).join('')}Question: ${question}\nAnswer:`;

/** What the model said to this question, without one that it goes on to ask itself. */
export const firstAnswer = (text) => text.split(STOP)[0];
