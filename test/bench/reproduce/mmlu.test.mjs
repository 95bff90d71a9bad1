import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mmluPrompt, parseCsv, parseMmlu } from './mmlu.mjs';

test('CSV fields may be quoted, and hold commas, quotes and line breaks', () => {
  assert.deepEqual(parseCsv('a,"b, ""c""",d\r\n"two\nlines",,x', 'x.csv'), [['a', 'b, "c"', 'd'], ['two\nlines', '', 'x']]);
  assert.deepEqual(parseCsv('\n\na\n', 'x.csv'), [['a']]);
  assert.throws(() => parseCsv('a\n"b,c\nd', 'x.csv'), /x\.csv:2: a quote is never closed/);
});

test('reads the public format and refuses other rows by file and number', () => {
  assert.deepEqual(parseMmlu('What?,w,x,y,z,C', 'x.csv'), [{ question: 'What?', choices: ['w', 'x', 'y', 'z'], right: 2 }]);
  assert.throws(() => parseMmlu('What?,w,x,y,z,C\nWhat?,w,x,y,C', 'x.csv'), /x\.csv, row 2: .* found 5 fields/);
  assert.throws(() => parseMmlu('What?,w,x,y,z,E', 'x.csv'), /found 6 fields with 'E' at the end/);
});

test('the examples show their answers, the question does not', () => {
  const [item] = parseMmlu('What?,w,x,y,z,C', 'x.csv');
  const { examples, question } = mmluPrompt('high_school_logic', [item], item);
  assert.equal(examples, 'The following are multiple choice questions (with answers) about high school logic.\n\nWhat?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\n');
  assert.equal(question, 'What?\nA. w\nB. x\nC. y\nD. z\nAnswer:');
});
