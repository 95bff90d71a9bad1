import assert from 'node:assert/strict';
import { test } from 'node:test';
import { finalNumber, firstAnswer, gsm8kPrompt, parseGsm8k } from './gsm8k.mjs';

test('the number behind #### counts, else the last one', () => {
  assert.equal(finalNumber('3 + 4 = 7\n#### 7'), 7);
  assert.equal(finalNumber('#### 1,234 and then 9'), 1234);
  assert.equal(finalNumber('She pays $1,050.50 in all.'), 1050.5);
  assert.equal(finalNumber('from 8 to -2'), -2);
  assert.equal(finalNumber('it costs 18.'), 18);
  assert.equal(finalNumber('#### -$5'), -5);
  assert.equal(finalNumber('no idea'), null);
});

test('reads the public format, and shows examples without its calculator notes', () => {
  const [item] = parseGsm8k('{"question": " How many? ", "answer": "2*3=<<2*3=6>>6\\n#### 6"}\n\n', 'x.jsonl');
  assert.deepEqual(item, { question: 'How many?', answer: '2*3=<<2*3=6>>6\n#### 6', number: 6 });
  assert.equal(gsm8kPrompt([item], 'And now?'), 'Question: How many?\nAnswer: 2*3=6\n#### 6\n\nQuestion: And now?\nAnswer:');
});

test('names file and line of what it cannot read', () => {
  assert.throws(() => parseGsm8k('{"question": "a", "answer": "#### 1"}\n{oops', 'x.jsonl'), /x\.jsonl:2: not JSON/);
  assert.throws(() => parseGsm8k('{"question": "a"}', 'x.jsonl'), /x\.jsonl:1: question or answer is missing/);
  assert.throws(() => parseGsm8k('null', 'x.jsonl'), /x\.jsonl:1: question or answer is missing/);
  assert.throws(() => parseGsm8k('{"question": "a", "answer": "four"}', 'x.jsonl'), /no number behind ####/);
});

test('a question that the model asks itself is not its answer', () => {
  assert.equal(firstAnswer(' 5\n#### 5\n\nQuestion: What is 9?\nAnswer: 9'), ' 5\n#### 5\n');
});
