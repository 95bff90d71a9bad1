import { describeEnd, LastLines } from './crash-report';

test('tells the assertion among the lines that follow it', () => {
  const lastLines = ['/src/llama-model.cpp:812: GGML_ASSERT(hparams.n_expert > 0) failed', '/usr/lib/libc.so.6(+0x45)', '[0x55d]'];
  expect(describeEnd({ signal: 'SIGABRT', exitCode: null, lastLines })).toBe(
    'the engine host was ended by SIGABRT: /src/llama-model.cpp:812: GGML_ASSERT(hparams.n_expert > 0) failed');
});

test('a kill without a word points at the memory killer', () => {
  expect(describeEnd({ signal: 'SIGKILL', exitCode: null, lastLines: [] })).toMatch(/SIGKILL.*memory/);
  expect(describeEnd({ signal: null, exitCode: 3, lastLines: [] })).toBe('the engine host exited with code 3');
});

test('keeps the last lines of whatever is written, in bounded memory', () => {
  const lines = new LastLines();
  for (let i = 0; i < 1000; i += 1) lines.push(`line ${i}\nhalf`);
  lines.push('x'.repeat(1_000_000));
  lines.push('\nlast');
  expect(lines.all().length).toBeLessThanOrEqual(13);
  expect(lines.all().at(-1)).toBe('last');
  expect(Math.max(...lines.all().map((line) => line.length))).toBeLessThanOrEqual(400);
});
