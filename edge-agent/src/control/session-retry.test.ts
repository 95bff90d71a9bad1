import { status } from '@grpc/grpc-js';
import { planRetry } from './session-retry';

test('waits as backoff says where nothing else was asked', () => {
  expect(planRetry(status.UNAVAILABLE, null, 700, () => 0.5)).toEqual({ waitMs: 700, nextStep: null });
});

test('honours what the coordinator asks, stretched so that a fleet does not come as one, and within reason', () => {
  expect(planRetry(status.RESOURCE_EXHAUSTED, 10_000, 700, () => 0.5).waitMs).toBe(11_000);
  expect(planRetry(status.UNAVAILABLE, 10_000, 20_000, () => 0).waitMs).toBe(20_000);
  expect(planRetry(status.UNAVAILABLE, 1e12, 700, () => 0).waitMs).toBe(300_000);
  expect(planRetry(status.UNAVAILABLE, NaN, 700, () => 0).waitMs).toBe(700);
});

test('an id that is taken is retried slowly, with what to do about it', () => {
  const retry = planRetry(status.ALREADY_EXISTS, null, 700, () => 0);
  expect(retry.waitMs).toBe(30_000);
  expect(retry.nextStep).toMatch(/--id/);
});
