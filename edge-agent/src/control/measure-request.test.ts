import { Measure } from '@moefleet/proto';
import { MeasureError, planMeasure, scorableTokens } from './measure-request';

const good = { prompts: ['The river'], tokensPerPrompt: 16, text: 'words', textTokens: 512, context: 256, temperature: 0.5, seed: 3 };
const plan = (measure: Partial<Measure>, contextTokens = 256) => planMeasure(Measure.fromPartial({ ...good, ...measure }), contextTokens);

test('takes what makes sense', () => {
  expect(plan({})).toEqual({ prompts: ['The river'], tokensPerPrompt: 16, temperature: 0.5, seed: 3, text: { text: 'words', tokens: 512, context: 256 } });
  expect(plan({ text: '', textTokens: 0 }).text).toBeNull();
  expect(plan({ prompts: [], tokensPerPrompt: 0 }).prompts).toEqual([]);
  expect(plan({ context: 0 }, 128).text!.context).toBe(128);
});

test.each([
  [{ prompts: Array<string>(65).fill('x') }, /prompts: 65/], [{ prompts: [''] }, /prompts\[0\]/], [{ prompts: ['x'.repeat(65_537)] }, /65537/],
  [{ tokensPerPrompt: 0 }, /tokens_per_prompt: 0/], [{ tokensPerPrompt: 4097 }, /4097/], [{ text: 'x'.repeat(512 * 1024 + 1) }, /524289/],
  [{ textTokens: 300 }, /300/], [{ textTokens: 0 }, /text_tokens: 0/], [{ context: 512 }, /512.*256/], [{ temperature: 2.1 }, /2\.1/], [{ temperature: NaN }, /NaN/], [{ prompts: [], text: '' }, /nothing to measure/],
])('refuses %j', (measure, says) => {
  expect(() => plan(measure)).toThrow(MeasureError);
  expect(() => plan(measure)).toThrow(says);
});

test('scores as much of a short text as has a next token', () => {
  expect(scorableTokens(10_000, 512, 256)).toBe(512);
  expect(scorableTokens(513, 512, 256)).toBe(512);
  expect(scorableTokens(512, 512, 256)).toBe(256);
  expect(() => scorableTokens(256, 512, 256)).toThrow(/256 tokens, too short/);
});
