/** A fleet that teaches a newcomer: what one agent's tokens wanted fills the next one's cache before its first request. */
import { until } from '../harness/ports';
import { complete, TestFleet } from '../harness/test-fleet';

const fleet = new TestFleet({ MOEFLEET_EXPERT_USE_INTERVAL: '0.5' });

beforeAll(() => fleet.start(), 120_000);
afterAll(() => fleet.stop());

async function metric(httpUrl: string, name: string): Promise<number> {
  const text = await (await fetch(`${httpUrl}/metrics`)).text();
  return Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, 'm').exec(text)?.[1]);
}

/** Summed over layers. */
async function experts(httpUrl: string, what: 'resident' | 'capacity'): Promise<number> {
  const text = await (await fetch(`${httpUrl}/metrics`)).text();
  return [...text.matchAll(new RegExp(`^moefleet_agent_${what}_experts\\{layer="\\d+"\\} (\\d+)$`, 'gm'))].reduce((sum, found) => sum + Number(found[1]), 0);
}

test('a newcomer starts warm with what the fleet knows, answers the same, and misses less; one that is told not to starts cold', async () => {
  const prompt = 'def read(path):';
  const teacher = await fleet.agent('teacher', { labels: 'workload=code' });
  for (const begin of ['def read(path):', 'import os', 'class Node:', 'for line in lines:']) await complete(teacher.httpUrl, { prompt: begin, tokens: 64 });
  const newcomer = await until('a newcomer is filled', async () => {
    const agent = await fleet.agent(`newcomer-${Date.now()}`, { labels: 'workload=code' });
    const full = async () => await experts(agent.httpUrl, 'resident') === await experts(agent.httpUrl, 'capacity') && await experts(agent.httpUrl, 'capacity') > 0;
    const filled = await until('its cache is full', full, 5_000).catch(() => false);
    return filled ? agent : null;
  }, 60_000);
  expect(await metric(newcomer.httpUrl, 'moefleet_agent_warm_fills_total')).toBe(await experts(newcomer.httpUrl, 'capacity'));
  expect(await metric(newcomer.httpUrl, 'moefleet_agent_flash_bytes_total')).toBe(0);
  expect(await metric(newcomer.httpUrl, 'moefleet_agent_warm_bytes_total')).toBeGreaterThan(0);
  const warm = await complete(newcomer.httpUrl, { prompt, tokens: 64 });

  const stranger = await fleet.agent('stranger', { labels: 'workload=code', flags: ['--warm-start', 'off'] });
  const cold = await complete(stranger.httpUrl, { prompt, tokens: 64 });
  expect(await metric(stranger.httpUrl, 'moefleet_agent_warm_fills_total')).toBe(0);
  expect(warm.text).toBe(cold.text);
  expect(warm.misses).toBeLessThan(cold.misses);
}, 180_000);
