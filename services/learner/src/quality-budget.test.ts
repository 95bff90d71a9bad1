import { budgetFor, loosestBudget, parseBudgetRules } from './quality-budget';

const FLEET = { meanNats: Math.log1p(0.01), worstNats: Math.log1p(0.02) };
const rules = parseBudgetRules('device/phone-7: 0.5%; class=phone,tier in (free, trial): 2%/3%');
const meanOf = (id: string, labels: Record<string, string>) => Math.expm1(budgetFor({ id, labels }, rules, FLEET).meanNats);

test('takes the first rule that holds: a device, a group, else the fleet\'s budget', () => {
  expect(meanOf('phone-7', { class: 'phone', tier: 'free' })).toBeCloseTo(0.005, 12);
  expect(meanOf('phone-8', { class: 'phone', tier: 'trial' })).toBeCloseTo(0.02, 12);
  expect(meanOf('phone-9', { class: 'phone' })).toBeCloseTo(0.01, 12);
});

test('the worst domain may lose twice as much unless the rule says otherwise', () => {
  expect(rules.map(({ budget }) => Number(Math.expm1(budget.worstNats).toFixed(9)))).toEqual([0.01, 0.03]);
  expect(Math.expm1(loosestBudget(rules, FLEET).worstNats)).toBeCloseTo(0.03, 12);
});
