import { LastGood } from './last-good';

test('two crashes before the first token go back to the last proven value', () => {
  const good = new LastGood('a', null);
  good.prove();
  good.try('b');
  expect(good.crashed()).toBeNull();
  expect(good.crashed()).toBe('a');
  expect(good.current).toBe('a');
  expect(good.proven).toBe(true);
});

test('a proven value stays, however often the engine crashes under it', () => {
  const good = new LastGood('a', 'z');
  expect(good.prove()).toBe(true);
  expect(good.prove()).toBe(false);
  for (let i = 0; i < 5; i += 1) expect(good.crashed()).toBeNull();
  expect(good.current).toBe('a');
});

test('an unproven value in between is never gone back to', () => {
  const good = new LastGood('a', null);
  good.prove();
  good.try('b');
  good.try('c');
  expect(good.goBack()).toBe('a');
});

test('with nothing to go back to it carries on', () => {
  const good = new LastGood('a', null);
  for (let i = 0; i < 5; i += 1) expect(good.crashed()).toBeNull();
  expect(good.goBack()).toBeNull();
  expect(good.lastGood).toBeNull();
});

test('crashes are counted anew for each value', () => {
  const good = new LastGood('a', 'z');
  good.crashed();
  good.try('b');
  expect(good.crashed()).toBeNull();
  expect(good.crashed()).toBe('z');
});
