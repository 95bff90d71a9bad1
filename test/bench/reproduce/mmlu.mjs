/**
 * MMLU (Hendrycks et al. 2021) in its public form: `dev/<subject>_dev.csv` with the worked examples and
 * `test/<subject>_test.csv`, rows of question, four choices and the letter of the right one, without a header.
 */
export const LETTERS = ['A', 'B', 'C', 'D'];

/** Rows of a CSV text (RFC 4180: quoted fields may hold commas, line breaks and doubled quotes). Throws on an open quote. */
export function parseCsv(text, path) {
  const rows = [];
  let row = [];
  let field = '';
  let quoted = false;
  let line = 1;
  let opened = 0;
  const endRow = () => {
    row.push(field);
    if (row.length > 1 || row[0] !== '') rows.push(row);
    [row, field] = [[], ''];
  };
  for (let i = 0; i < text.length; i += 1) {
    const char = text[i];
    if (char === '\n') line += 1;
    if (quoted) {
      if (char !== '"') field += char;
      else if (text[i + 1] === '"') { field += '"'; i += 1; } else quoted = false;
    } else if (char === '"' && field === '') { quoted = true; opened = line; } else if (char === ',') { row.push(field); field = ''; } else if (char === '\n') endRow();
    else if (char !== '\r') field += char;
  }
  if (quoted) throw new Error(`${path}:${opened}: a quote is never closed`);
  endRow();
  return rows;
}

/** `[{question, choices, right}]`; throws with file, row and reason. */
export function parseMmlu(text, path) {
  return parseCsv(text, path).map((row, index) => {
    const right = LETTERS.indexOf(row[5]?.trim());
    if (row.length !== 6 || right < 0) {
      throw new Error(`${path}, row ${index + 1}: expected question, four choices and one of A to D, found ${row.length} fields${row.length === 6 ? ` with '${row[5]}' at the end` : ''}`);
    }
    return { question: row[0].trim(), choices: row.slice(1, 5).map((choice) => choice.trim()), right };
  });
}

const asked = ({ question, choices }) => `${question}\n${choices.map((choice, index) => `${LETTERS[index]}. ${choice}`).join('\n')}\nAnswer:`;

/** The examples, which are the prompt, and the question behind them; an answer is a space and a letter. */
export function mmluPrompt(subject, examples, item) {
  const head = `The following are multiple choice questions (with answers) about ${subject.replaceAll('_', ' ')}.\n\n`;
  return { examples: head + examples.map((example) => `${asked(example)} ${LETTERS[example.right]}\n\n`).join(''), question: asked(item) };
}
